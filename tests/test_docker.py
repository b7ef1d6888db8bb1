"""What docker/ promises, as far as it can be seen without a container engine: nobody is root,
nothing is published beyond this machine, no password stands in a file, every command exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from orchestrator.cli import app

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
KUBERAY = DOCKER / "kuberay"
SBATCH = DOCKER / "slurm" / "sweep.sbatch"
SCRIPTS = sorted(
    path
    for path in DOCKER.rglob("*")
    if path.is_file() and path.read_bytes().startswith(b"#!/bin/bash")
)
SERVICES = ("head", "worker", "mlflow", "postgres")


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


def manifests() -> list[dict[str, Any]]:
    """Every object of docker/kuberay/, as written."""
    found: list[dict[str, Any]] = []
    for path in sorted(KUBERAY.rglob("*.yaml")):
        found += [
            one for one in yaml.safe_load_all(path.read_text()) if one["kind"] != "Kustomization"
        ]
    return found


def manifest(kind: str, name: str = "targetsweep") -> dict[str, Any]:
    return next(m for m in manifests() if (m["kind"], m["metadata"]["name"]) == (kind, name))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(whose, spec) of every pod that the manifests make."""
    for found in manifests():
        name, spec = f"{found['kind']} {found['metadata']['name']}", found["spec"]
        templates = [spec.get("template"), spec.get("submitterPodTemplate")]
        templates += [spec.get("headGroupSpec", {}).get("template")]
        templates += [group["template"] for group in spec.get("workerGroupSpecs", ())]
        for template in filter(None, templates):
            yield name, template["spec"]


PODS = [pytest.param(spec, id=f"{name}-{i}") for i, (name, spec) in enumerate(pods())]


# -- Image --------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, what it says), continued lines joined, comments left out."""
    lines = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    said = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    return [(first, rest) for first, rest in said]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for instruction, rest in dockerfile():
        if instruction == "FROM":
            found[rest.split()[-1]] = []
        elif found:
            list(found.values())[-1].append((instruction, rest))
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_both_targets_end_as_the_fixed_user(target: str) -> None:
    assert [rest for name, rest in stages()[target] if name == "USER"] == ["1000:1000"]


def test_base_is_pinned_to_a_patch_level_and_may_be_pinned_by_digest() -> None:
    base = dict(dockerfile())["ARG"].removeprefix("BASE=")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert "@sha256:<that digest>" in (DOCKER / "Dockerfile").read_text()


def test_install_steps_are_those_of_install_sh() -> None:
    runs = [rest for name, rest in dockerfile() if name == "RUN"]
    assert runs
    assert all("/targetsweep/install.sh" in rest for rest in runs)
    steps = {word for rest in runs for word in re.findall(r"[a-z]+", rest.split("install.sh")[1])}
    script = (DOCKER / "install.sh").read_text()
    assert steps == {"system", "dependencies", "project", "compiler"}
    assert all(f"\n{step}() {{" in script for step in steps)
    assert "-c constraints.txt" in script
    assert "EXTRAS:-cluster" in script
    assert "USER_ID=1000" in script


def test_everything_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    for name, rest in dockerfile():
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in sent, source
    assert not any(name.startswith("docker/secrets") or ".env" in name for name in sent)


def test_no_secret_reaches_a_layer() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert "target=/etc/pip.conf,required=false" in text
    assert not re.search(r"(?i)(password|token)\s*=\s*(?!token\b)\S", text)


# -- Compose ------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_service_is_hardened_and_watched(service: str) -> None:
    found = compose()["services"][service]
    assert not str(found["user"]).startswith(("0", "root"))
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in found["security_opt"]
    assert found["restart"] == "unless-stopped"
    assert found["healthcheck"]["test"]
    assert found["stop_grace_period"]
    assert not found.get("privileged")


def test_services_wait_for_each_other_in_order() -> None:
    services = compose()["services"]
    for service, other in (("worker", "head"), ("head", "mlflow"), ("mlflow", "postgres")):
        assert services[service]["depends_on"] == {other: {"condition": "service_healthy"}}


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for one in compose()["services"].values() for port in one.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_ray_asks_for_the_token_which_is_a_secret() -> None:
    document = compose()
    for service in ("head", "worker"):
        found = document["services"][service]
        assert found["environment"]["RAY_AUTH_MODE"] == "token"
        assert found["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert found["secrets"] == ["ray_token"]
    assert document["secrets"]["ray_token"] == {"file": "./secrets/ray_token"}


def test_mlflow_is_told_the_names_by_which_it_is_called() -> None:
    document = compose()
    tracking = document["services"]["head"]["environment"]["MLFLOW_TRACKING_URI"]
    assert tracking == "http://mlflow:5000"
    for command in (
        document["services"]["mlflow"]["command"][-1],
        manifest("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["args"][0],
    ):
        hosts = re.search(r'--allowed-hosts="([^"]*)"', command)
        origins = re.search(r'--cors-allowed-origins="([^"]*)"', command)
        assert hosts is not None
        assert origins is not None
        assert {"mlflow", "mlflow:5000"} <= set(hosts[1].split(","))
        assert "*" not in hosts[1].split(",")
        assert tracking in origins[1].split(",")
        assert "*" not in origins[1].split(",")


def test_no_password_stands_in_a_file() -> None:
    plain = re.compile(r"(?i)(password|secret|token)[a-z_]*\s*[:=]\s*['\"]?[A-Za-z0-9+]{12,}")
    credentials = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
    for path in DOCKER.rglob("*"):
        if path.is_file() and not path.is_relative_to(DOCKER / "secrets"):
            text = path.read_text()
            assert not credentials.search(text), path
            assert not plain.search(text), path


def test_secrets_are_made_once_and_not_committed(tmp_path: Path) -> None:
    for name in ("make-secrets", ".env.example"):
        shutil.copy(DOCKER / name, tmp_path / name)
    said = subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True, text=True)
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    subprocess.run([tmp_path / "make-secrets"], check=True)
    assert said.stdout == ""
    assert set(first) == {"ray_token", "postgres_password"}
    assert all(re.fullmatch(r"[0-9a-f]{64}", text) for text in first.values())
    assert first == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {".env", "secrets/"} <= set((DOCKER / ".gitignore").read_text().split())


def test_variables_of_the_compose_file_are_those_of_the_example() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    lines = (DOCKER / ".env.example").read_text().splitlines()
    assert used == {line.split("=")[0] for line in lines if line and line[0] != "#"}


def test_gpu_override_changes_services_that_exist() -> None:
    override = compose("compose.gpu.yaml")["services"]
    assert set(override) <= set(SERVICES)
    devices = override["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


# -- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", PODS)
def test_pod_is_hardened(spec: dict[str, Any]) -> None:
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        names = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} - {"data"} <= names


def test_services_of_kubernetes_have_probes() -> None:
    for name, spec in pods():
        if not name.startswith("RayJob"):
            for container in spec["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


def test_ray_cluster_has_a_token_and_workers_that_say_good_bye() -> None:
    spec = manifest("RayCluster")["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "targetsweep-ray"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert spec["rayVersion"] == pinned[1]
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        program, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "drain-node"
        assert int(seconds) < pod["terminationGracePeriodSeconds"]
        assert "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]


def test_secrets_of_kubernetes_are_only_referred_to() -> None:
    assert not [found for found in manifests() if found["kind"] == "Secret"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(("overlay", "kind"), [("cluster", "RayCluster"), ("job", "RayJob")])
def test_kustomization_makes_the_cluster_or_the_job(overlay: str, kind: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERAY / overlay)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    built = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert {"RayCluster", "RayJob"} & set(built) == {kind}
    spec = built[kind]["spec"]
    cluster = spec if kind == "RayCluster" else spec["rayClusterSpec"]
    assert cluster == manifest("RayCluster")["spec"] | {
        "headGroupSpec": cluster["headGroupSpec"],  # images have other names
        "workerGroupSpecs": cluster["workerGroupSpecs"],
    }
    assert built["ConfigMap"]["metadata"]["name"] == "targetsweep"  # as the pods call it


# -- Commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-S", "warning", path], check=True)


def test_batch_script_keeps_the_token_off_command_lines() -> None:
    text = SBATCH.read_text()
    assert re.search(r"^\(umask 077 && .*token\"\)", text, re.MULTILINE)
    assert not re.search(r"^umask", text, re.MULTILINE)  # it would be the store's
    assert 'RAY_AUTH_TOKEN_PATH="$secrets/token"' in text
    assert "RAY_AUTH_MODE=token" in text
    assert not re.search(r"\$\(cat[^)]*token", text)
    assert re.search(r"^#SBATCH --signal=B:USR1@\d+$", text, re.MULTILINE)
    assert "#SBATCH --requeue\n" in text


@pytest.mark.parametrize(("gpus", "accelerator"), [(None, "auto"), ("0", "auto"), ("8", "gpu")])
def test_a_slurm_job_with_gpus_trains_on_them(gpus: str | None, accelerator: str) -> None:
    text = SBATCH.read_text()
    (lines,) = re.findall(r"^accelerator=.*\n.*\n", text, re.MULTILINE)
    assert (
        'targetsweep run --accelerator "$accelerator" "$@"' in text
    )  # a person's own comes later, and counts
    given = {} if gpus is None else {"SLURM_GPUS_ON_NODE": gpus}
    said = subprocess.run(
        ["bash", "-uc", f"{lines}echo $accelerator"],
        env=given,
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout == f"{accelerator}\n"


def test_a_job_of_kubernetes_waits_for_its_gpus() -> None:
    assert manifest("RayJob")["spec"]["entrypoint"].endswith("--accelerator gpu")


def commands_said() -> Iterator[tuple[str, list[str]]]:
    """(file, words) of every `targetsweep …` in docker/: in scripts, manifests and the README."""
    for path in sorted(DOCKER.rglob("*")):
        if not path.is_file() or path.is_relative_to(DOCKER / "secrets"):
            continue
        text = path.read_text().replace("\\\n", " ").replace("\n#     sweeps", " sweeps")
        pattern = (
            r"\btargetsweep (run|submit|stop|status|doctor|report|plan|store \w+)\b([^\n`&|;()]*)"
        )
        for found in re.finditer(pattern, text):
            words = re.split(r"\s{2,}|  #", found[2])[0] if "  " in found[2].strip() else found[2]
            yield (
                path.name,
                [*found[1].split(), *shlex.split(words.replace("'", "").replace('"', ""))],
            )


def test_every_targetsweep_command_exists_with_its_options() -> None:
    tree = typer.main.get_command(app)
    seen = set()
    for name, words in commands_said():
        command: Any = tree
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= options, (name, command.name, words)
        seen.add(command.name)
    assert {"run", "submit", "stop", "status", "doctor"} <= seen

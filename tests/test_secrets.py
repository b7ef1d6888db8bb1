"""Secrets are planted where drivers have them, a sweep with a failure is driven, and everything
that it left is searched for them: store, screen, MLflow's database, bundle."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tracking_helpers import empty_database

from dashboards.report import write_report
from orchestrator import paths
from orchestrator.bundleexport import export_bundle
from orchestrator.errors import StoreError, UserError
from orchestrator.lease import Lease, holder
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.publishing import track_results
from orchestrator.redaction import has_secret, redact, redact_all, redacted, redacting_screen
from orchestrator.spec import load_sweeps
from orchestrator.status import show_status
from orchestrator.store import Store
from orchestrator.tracking import Tracker, tracking_uri
from orchestrator.worker import execute
from tests.driving import Reports, digits_store, drive_here, tiny_plan
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL

NAME = "tiny"
ADDRESS_SHOWN = "postgresql+psycopg2://db.example"
PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": "Planted-mlflow-1",
    "MLFLOW_TRACKING_TOKEN": "Planted-token-2",
    "RAY_AUTH_TOKEN": "9f3b" * 16,
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED3",
    "AWS_SECRET_ACCESS_KEY": "Planted/s3+key4",
    "AWS_SESSION_TOKEN": "Planted-session-5",
    "PGPASSWORD": "Planted-pg-6",
}
IN_URI = "Planted%2Fin-uri-7"
ADDRESS = f"postgresql+psycopg2://runner:{IN_URI}@db.example:5432/mlflow"
OPTION = "s3://bucket/x?access_key=PlantedOption8&region=eu"
SWEEP = f"""\
name: tiny
title: See {OPTION}
description: Kept at {ADDRESS}
set: {{dataset: digits, backbone: {{name: resnet18, width: 4}}, strategy: A, augmentation: none}}
grids:
  - set: {{training: {{steps: 5, batch_size: 32}}}}
    axes: {{seed: [0, 1]}}
report:
  - {{table: numbers, rows: [strategy], columns: [ipc]}}
"""
ALL = [*PLANTED.values(), IN_URI, "Planted/in-uri-7", "PlantedOption8"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("EXTRA_TRACKING_URI", ADDRESS)


def leaks(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [secret for secret in ALL if secret.encode() in data]


def leaking(folder: Path) -> dict[str, list[str]]:
    """Files with secrets in them, SQLite's among them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    found = {str(path.relative_to(folder)): leaks(path.read_bytes()) for path in files}
    return {name: secrets for name, secrets in found.items() if secrets}


class TestRedaction:
    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("https://me:secret@host:1/x", "https://host:1/x"),
            ("https://token@host/x", "https://host/x"),
            ("postgresql+psycopg2://u:p/w@h/db", "postgresql+psycopg2://h/db"),
            ("s3://K:S/x+y@bucket/p", "s3://bucket/p"),
            ("s3://b/p?region=x&secret_key=BB", "s3://b/p?region=x&secret_key=***"),
            ("s3://b/p?access_key=AA;session_token=T", "s3://b/p?access_key=***;session_token=***"),
        ],
    )
    def test_of_a_uri(self, uri: str, shown: str) -> None:
        assert redacted(uri) == shown
        assert has_secret(uri)
        assert redact(f"see '{uri}', there") == f"see '{shown}', there"

    @pytest.mark.parametrize(
        "uri",
        [
            "http://127.0.0.1:5000/a@b",
            "sqlite:////home/me@work/mlflow.db",
            "s3://bucket/a@b?endpoint_override=127.0.0.1:9&scheme=http",
            "/plain/path@x",
        ],
    )
    def test_leaves_what_holds_no_secret(self, uri: str) -> None:
        assert redacted(uri) == uri
        assert redact(uri) == uri

    @pytest.mark.usefixtures("planted")
    def test_of_values(self) -> None:
        value = {"a": [PLANTED["PGPASSWORD"], 1, None], ADDRESS: {"b": True}}
        assert leaks(json.dumps(redact_all(value))) == []
        plain = {"run": "student-0123", "step": 3, "x": [1.5, None, "B t60"]}
        assert redact_all(plain) == plain

    def test_a_password_that_is_a_word_changes_no_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "students")
        assert redact("students-0123") == "students-0123"

    @pytest.mark.usefixtures("planted")
    def test_of_the_screen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        redacting_screen()
        print(f"tracking at {ADDRESS}", PLANTED["PGPASSWORD"])
        Console(width=200).print(f"MLflow: {ADDRESS}")
        print(OPTION, file=sys.stderr)
        sys.stderr.writelines([ADDRESS, "\n"])
        assert leaks(out.getvalue()) == []
        assert out.getvalue().count("db.example") == 3

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_of_a_screen_of_another_encoding(
        self, monkeypatch: pytest.MonkeyPatch, encoding: str
    ) -> None:
        """A table's ± ended a run in a traceback where the locale was C and Python took it so."""
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding, write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        redacting_screen()
        print("10.0 ± 0.5 → done")
        Console(width=40).print("10.0 ± 0.5 → done")
        monkeypatch.undo()
        said = raw.getvalue().decode(encoding).splitlines()
        assert said == [f"10.0 {'?' if encoding == 'ascii' else '±'} 0.5 ? done"] * 2


class TestStoreUris:
    @pytest.mark.parametrize("uri", ["s3://AKIAPLANTED3:PlantedOption8@bucket/x", OPTION])
    def test_with_credentials_are_refused(self, uri: str) -> None:
        """A store's URI goes into trials, plans' commands and job tables: so none may hold one."""
        with pytest.raises(StoreError) as caught:
            Store(uri)
        assert leaks(str(caught.value)) == []
        assert "AWS_ACCESS_KEY_ID" in caught.value.remedy

    def test_by_reports_too(self) -> None:
        with pytest.raises(ValueError, match=r"belong|unknown option") as caught:
            write_report(OPTION, NAME)
        assert leaks(str(caught.value)) == []


def failing(store: Store, name: str, *arguments: object) -> Reports:
    """One student ends with every secret in its message."""
    label = (store.read_json(paths.run_json(name)) or {})["label"]
    if "seed1" in label:
        raise RuntimeError(f"no answer from {ADDRESS} or {OPTION}: {' '.join(PLANTED.values())}")
    yield from execute(store, name, *arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("planted")
def test_a_sweep_with_failures_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    redacting_screen()
    console = Console(width=200)
    store = digits_store(tmp_path / "store")
    shutil.copy(empty_database(), store.root / "mlflow.db")
    command = f"targetsweep run {NAME}.yaml --tracking-uri {ADDRESS} --x {OPTION}"
    with Lease(store, command, heartbeat_s=0.05) as lease:
        assert leaks(store.read_bytes(paths.lease())) == []
        drive_here(tiny_plan(tmp_path, text=SWEEP), store, run=failing)
        (sweep,) = load_sweeps([write(tmp_path, SWEEP)], OFFICIAL)
        document = plan_document(sweep, make_plan([sweep], OFFICIAL))
        store.write_json(paths.plan_json(NAME), document, in_order=True)
        show_status(console, store)
        console.print(f"driven by {holder(store)}", soft_wrap=True)
        assert not lease.lost.is_set()
    write_report(store.uri, NAME)
    track_results(Tracker(store), store, [NAME])
    export_bundle(store, str(tmp_path / "bundle"))
    failures = [name for name in store.list("runs") if store.exists(paths.failure(name))]
    assert len(failures) == 1
    written = store.read_json(paths.failure(failures[0])) or {}
    assert f"no answer from {ADDRESS_SHOWN}" in written["message"]
    assert leaking(store.root) == {}
    assert leaking(tmp_path / "bundle") == {}
    assert "db.example" in screen.getvalue()
    assert leaks(screen.getvalue()) == []


@pytest.mark.usefixtures("planted")
def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.write_json(paths.plan_json(NAME), {"sweep": NAME, "points": []})
    tracker = Tracker(store, f"http://runner:{IN_URI}@127.0.0.1:9")
    assert tracking_uri(store, tracker.uri) == tracker.uri
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9") as caught:
        tracker.sync()
    assert leaks(str(caught.value)) == []

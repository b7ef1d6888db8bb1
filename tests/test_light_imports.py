"""What a command loads before it is needed would be waited for: seconds of every cold start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
END = {"matplotlib", "mlflow", "pandas", "scipy", "seaborn", "statsmodels"}
"""Of reports and tracking: what ends a sweep needs them."""

SCRIPT = """
import json, sys
import orchestrator.cli as cli
sys.argv = ["targetsweep", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    assert (end.code or 0) == {status}, end.code
{then}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def loaded(*arguments: str, then: str = "", status: int = 0) -> set[str]:
    """Packages that a process has loaded after a command that ends so, and after some code."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(arguments=list(arguments), then=then, status=status)],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", [(), ("run",), ("plan",)])
def test_help_loads_neither_torch_nor_ray(command: tuple[str, ...]) -> None:
    assert not loaded(*command, "--help") & {*END, "ray", "torch"}


def test_a_plan_loads_neither_ray_nor_reports(tmp_path: Path) -> None:
    found = loaded("plan", str(ROOT / "sweeps/demo.yaml"), "--store", str(tmp_path / "store"))
    assert "orchestrator" in found
    assert not found & {*END, "ray"}


def test_a_run_reads_its_sweeps_before_it_loads_torch_ray_or_reports() -> None:
    assert not loaded("--help", then="import orchestrator.sweeping") & {*END, "ray", "torch"}


def test_status_needs_neither_torch_nor_reports() -> None:
    assert not loaded("--help", then="import orchestrator.status") & {*END, "ray", "torch"}


def test_what_is_wrong_with_a_sweep_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: wrong\nset: {dataset: digits, strategy: D}\n")
    found = loaded("run", str(file), "--store", str(tmp_path / "store"), status=2)
    assert not found & {*END, "ray", "torch"}

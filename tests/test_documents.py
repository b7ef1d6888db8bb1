"""Prose that can drift is tested: the README names commands, options and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer
import yaml

from orchestrator.cli import app
from orchestrator.spec import load_sweeps

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def commands() -> dict[str, list[str]]:
    """Every command with its options."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    return {
        name: [option for parameter in command.params for option in parameter.opts]
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def all_commands() -> dict[str, list[str]]:
    """Those of groups too, as `store check`."""
    found = commands()
    for name, group in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner, command in getattr(group, "commands", {}).items():
            found[f"{name} {inner}"] = [o for param in command.params for o in param.opts]
    return found


def test_the_readme_names_commands_that_exist() -> None:
    named = set(re.findall(r"^targetsweep ([a-z]+)", README, re.MULTILINE))
    assert named == set(commands()) - {"resume", "schema"}


def test_the_readme_names_options_of_run_that_exist() -> None:
    line = README.split("Useful with `run`:")[1].split("\n\n")[0]
    options = set(re.findall(r"--[a-z-]+", line))
    assert len(options) > 5
    assert options <= set(commands()["run"])


def test_the_readmes_sweep_is_valid(tmp_path: Path) -> None:
    text = README.split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    (sweep,) = load_sweeps([file])
    assert len(sweep.points) == 2 * 3 * 5
    assert yaml.safe_load(text)["name"] == sweep.name


@pytest.mark.parametrize("text", [README, ARCHITECTURE], ids=["README", "architecture"])
def test_links_lead_somewhere(text: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://arxiv.org/") or (ROOT / link).exists(), link


def test_the_architecture_names_every_module_and_no_other() -> None:
    table = ARCHITECTURE.split("## Where things live")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    modules = {
        path.stem
        for folder in ("trainers", "orchestrator", "dashboards")
        for path in (ROOT / folder).glob("*.py")
        if not path.stem.startswith("_")
    }
    assert modules - named == set()
    folders = {"trainers", "orchestrator", "dashboards", "sweeps", "run", "submit", "targets"}
    assert named - modules - folders == set()


def test_the_own_study_is_valid_and_its_numbers_find_their_cells(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own-work.md").read_text()
    (study,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (numbers,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (tmp_path / "numbers.csv").write_text(numbers)
    file = tmp_path / "study.yaml"
    file.write_text(study + "    reference: numbers.csv\n")
    (sweep,) = load_sweeps([file])
    assert len(sweep.points) == 2 * 3 * 3
    assert "flowers" in sweep.data


def test_the_own_study_names_commands_and_options_that_exist() -> None:
    text = (ROOT / "docs" / "own-work.md").read_text()
    known = all_commands()
    lines = re.findall(r"^targetsweep (.+)$", text, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        name = next(n for n in (" ".join(line.split()[:2]), line.split()[0]) if n in known)
        assert set(re.findall(r"--[a-z-]+", line)) <= set(known[name]), line

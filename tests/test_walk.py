"""The whole paper in little: every shipped sweep's pilot trains, through the real command and Ray,
on stand-in pictures in the official layouts, and every report has all of its tables and figures.

One store and one `run` for all: what several sweeps ask is trained once, as at full scale.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import write_report
from orchestrator import paths
from orchestrator.lease import holder
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from tests.commands import Command, check_tracking, targetsweep
from tests.driving import facts
from tests.stand_in_data import write_cifar, write_imagenet, write_tiny_imagenet

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

PAPER = Path(__file__).parents[1] / "sweeps" / "paper"
SCALE = PAPER / "scales" / "walk.yaml"
GROUPS = {"full", "claims"}
SWEEPS = sorted(sweep.name for sweep in load_sweeps([PAPER / "full.yaml"]) if not sweep.include)
RUN = ("run", PAPER / "full.yaml", "--scale", SCALE)


@dataclass
class Walk:
    """The store after the one `run`, and what that said. located: its --data options."""

    store: Store
    command: Command
    located: list[str]

    def plan(self, sweep: str) -> dict[str, Any]:
        return self.store.read_json(paths.plan_json(f"{sweep}-walk")) or {}

    def runs(self, sweep: str) -> list[str]:
        """Folders of the students and probes that the sweep asks."""
        return sorted({point["run"] for point in self.plan(sweep)["points"]} - {None})


def stand_in_pictures(folder: Path) -> list[str]:
    """All four data sets, as many images a class as the paper's smallest tables ask; --data options
    for three of them. ImageNet is a part of itself, which only `data prepare` can be told."""
    write_cifar(folder / "cifar10", "cifar10", 500, test_per_class=10)
    write_cifar(folder / "cifar100", "cifar100", 50)
    write_tiny_imagenet(folder / "tiny", classes=10, per_class=50, test_per_class=10)
    write_imagenet(folder / "imagenet", classes=4, per_class=16, test_per_class=8)
    places = {"cifar10": "cifar10", "cifar100": "cifar100", "tinyimagenet": "tiny"}
    return [f"--data={name}={folder / place}" for name, place in places.items()]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("walk")
    located = stand_in_pictures(folder / "raw")
    store = Store(folder / "store")
    targetsweep(
        "data", "prepare", "imagenet", "--path", folder / "raw/imagenet", "--subset",
        "--store", store.root,
    )  # fmt: skip
    yield Walk(store, targetsweep(*RUN, *located, "--store", store.root), located)
    shutil.rmtree(folder)


def test_every_run_is_complete(walk: Walk) -> None:
    assert "warning" not in walk.command.text
    assert holder(walk.store) is None
    for sweep in SWEEPS:
        assert walk.runs(sweep), f"{sweep} trained nothing"
        for point in walk.plan(sweep)["points"]:
            if point["run"] is not None:
                result = facts(walk.store, point["run"])
                assert result["status"] == "complete", point
                assert result["horizon"] >= point.get("actual", {}).get("horizon", 1), point
    assert not list(walk.store.root.glob("runs/*/failure.json"))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_its_report_has_every_table_and_figure(walk: Walk, sweep: str, tmp_path: Path) -> None:
    """As `run` left it, and as `report` makes it: nothing in it could not be shown."""
    folder = Path(walk.store.local(paths.report_dir(f"{sweep}-walk")))
    items = [item for item in walk.plan(sweep)["report"] if "claim" not in item]
    assert items
    page = (folder / "index.html").read_text()
    assert "Pilot" in page
    for item in items:
        name = item.get("table") or item["figure"]
        kinds = ("tables", "md csv tex parquet") if "table" in item else ("figures", "png pdf csv")
        for ending in kinds[1].split():
            assert (folder / kinds[0] / f"{name}.{ending}").stat().st_size > 0
        assert f'id="{sweep}-walk--{name}"' in page
    again = write_report(walk.store.uri, f"{sweep}-walk", tmp_path / "again")
    assert again.problems == []
    assert len(again.figures) == sum("figure" in item for item in items)
    for file in (folder / "tables").iterdir():
        assert (tmp_path / "again" / "tables" / file.name).read_bytes() == file.read_bytes()


def test_the_group_is_one_page_of_everything(walk: Walk) -> None:
    command = targetsweep("report", "full-walk", "--store", walk.store.root)
    assert "warning" not in command.text
    assert len(command.lines) < 5
    folder = Path(walk.store.local(paths.report_dir("full-walk")))
    page = (folder / "index.html").read_text()
    claims = set()  # a group's page has those of the groups within it
    for sweep in [*SWEEPS, *GROUPS]:
        for item in walk.plan(sweep)["report"]:
            if "claim" in item:
                claims.add(item["claim"])
                anchor = f"claim--{item['claim']}"
            else:
                anchor = f"{sweep}-walk--{item.get('table') or item['figure']}"
            assert f'id="{anchor}"' in page
    assert page.count('id="claim--') == len(claims) > 0
    assert "What could not be read" not in page


def test_running_again_trains_nothing(walk: Walk) -> None:
    again = targetsweep(*RUN, *walk.located, "--store", walk.store.root)
    assert not again.started_ray
    assert "nothing to train" in again.text
    assert "first the teachers" not in again.text


def test_table_7_ran_both_backbones_on_two_workers(walk: Walk) -> None:
    """The pictures stay encoded, in shards; teachers and students are data-parallel."""
    meta = json.loads(walk.store.read_bytes(paths.dataset_meta("imagenet")))
    assert meta["encoded"]
    seen = set()
    for name in walk.runs("table_7"):
        spec = (walk.store.read_json(paths.run_json(name)) or {})["spec"]
        assert spec["dataset"]["name"] == "imagenet"
        assert facts(walk.store, name)["environment"]["workers"] == 2
        seen.add((spec["backbone"]["name"], spec["strategy"]))
        if spec.get("teacher"):
            teacher = paths.run_name("teacher", spec["teacher"]["key"])
            assert facts(walk.store, teacher)["environment"]["workers"] == 2
    assert seen == {(name, strategy) for name in ("resnet50", "vit_tiny") for strategy in "ABC"}


@pytest.mark.parametrize("sweep", ["table_1", "table_7"])
def test_tracking_has_every_point(walk: Walk, sweep: str) -> None:
    check_tracking(walk.store, f"{sweep}-walk")

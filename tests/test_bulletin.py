"""What is told of running trials away from the terminal: a file for `status`, lines for a log."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import cli, paths
from orchestrator.bulletin import Bulletin, posting, read_bulletin
from orchestrator.conductor import Conductor
from orchestrator.errors import StoreError
from orchestrator.glance import Glance, Going
from orchestrator.lease import Lease, holder
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.store import Store
from orchestrator.timeleft import Left
from tests.driving import conductor_of, tiny_plan
from tests.test_conductor import begin, tell

GLANCE = Glance(
    counts={"done": 1_203, "running": 2, "ready": 0},
    going=(
        Going(label="teacher [a]", step=20, horizon=None, top1=None, images_per_s=0, for_s=5.2),
        Going(label="B t30", step=1_500, horizon=39_000, top1=12.345, images_per_s=6_400, for_s=90),
    ),
    elapsed_s=600.0,
    left_s=7_800.0,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


class Desk:
    """A sweep with one running student, its output and its bulletin."""

    def __init__(self, plan: Plan, store: Store, *, terminal: bool = False) -> None:
        self.out = io.StringIO()
        console = Console(file=self.out, force_terminal=terminal, width=150, color_system=None)
        self.progress = Progress(console, done_before=3)
        self.clock = Clock()
        self.bulletin = Bulletin(self.progress, store, "me", self.clock)
        self._plan, self._store = plan, store

    def open(self) -> Conductor:
        conductor = conductor_of(self._plan, self._store, [self.progress], slots=2)
        self.progress.watch(conductor)
        unit = begin(conductor)
        tell(conductor, unit, "started", first_step=1)
        tell(conductor, unit, "evaluation", step=10, top1=12.5, images_per_s=640.0)
        return conductor

    def lines(self) -> list[str]:
        return [line[9:] for line in self.out.getvalue().splitlines()]


def test_a_glance_comes_back_from_the_store(store: Store) -> None:
    store.write_json("glance.json", GLANCE.as_json())
    assert Glance.from_json(store.read_json("glance.json") or {}) == GLANCE


def test_a_glance_in_words() -> None:
    out = io.StringIO()
    Console(file=out, width=150, color_system=None).print(GLANCE.table())
    header, search, student = out.getvalue().splitlines()
    assert header.split() == ["running", "step", "of", "top-1", "%", "images/s", "for"]
    assert search.split() == ["teacher", "[a]", "20", "–", "5", "s"]
    assert student.split()[2:6] == ["1,500", "39,000", "12.35", "6,400"] or "12.3" in student
    assert GLANCE.summary() == "1,203 done, 2 running · 10 min 00 s, about 2 h 10 min left"


def test_what_was_posted_is_read_by_its_driver_alone(plan: Plan, store: Store) -> None:
    desk = Desk(plan, store)
    desk.bulletin.look()
    assert read_bulletin(store, "me") is None  # nothing could begin yet
    desk.open()
    desk.bulletin.look()
    found = read_bulletin(store, "me")
    assert found is not None
    assert [(one.step, one.top1) for one in found.going] == [(10, 12.5)]
    assert found.counts["done"] == 3
    assert read_bulletin(store, "another") is None


def test_it_is_posted_now_and_then(plan: Plan, store: Store) -> None:
    desk = Desk(plan, store)
    conductor = desk.open()
    desk.bulletin.look()
    tell(conductor, next(iter(conductor.live)), "evaluation", step=15, top1=13.0)
    desk.clock.now += 5
    desk.bulletin.look()
    assert _step(store) == 10
    desk.clock.now += 15
    desk.bulletin.look()
    assert _step(store) == 15


def _step(store: Store) -> int:
    found = read_bulletin(store, "me")
    assert found is not None
    return found.going[0].step


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_a_line_now_and_then(plan: Plan, store: Store, terminal: bool) -> None:
    desk = Desk(plan, store, terminal=terminal)
    desk.open()
    before = len(desk.lines())
    assert desk.progress.left() is None
    desk.progress._left = (time.monotonic() + 3600.0, Left(125.0))
    for _ in range(13):  # eleven minutes and more
        desk.clock.now += 55
        desk.bulletin.look()
    new = desk.lines()[before:]
    if terminal:
        assert not new
        return
    assert len(new) == 2
    assert all(line.startswith("3 done, 1 running, ") and line.endswith(" left") for line in new)


def test_a_full_disk_is_for_others_to_complain_of(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(plan, store)
    desk.open()
    with monkeypatch.context() as patched:
        patched.setattr(store, "write_json", _no_space)
        desk.bulletin.look()
    assert read_bulletin(store, "me") is None
    desk.clock.now += 20
    desk.bulletin.look()
    assert _step(store) == 10


def _no_space(rel: str, obj: object) -> None:
    raise StoreError(f"cannot write {rel}: No space left on device")


def test_it_is_gone_with_the_driver(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.bulletin._LOOK_S", 0.01)
    desk = Desk(plan, store)
    desk.open()
    with posting(desk.progress, store, "me"):
        until = time.monotonic() + 30
        while not store.exists(paths.progress()):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not store.exists(paths.progress())


def test_status_shows_what_runs(store: Store) -> None:
    store.write_json(paths.plan_json("tiny"), {"points": []})

    def shown() -> list[str]:
        arguments = ["status", "--store", str(store.root)]
        return CliRunner().invoke(cli.app, arguments).output.splitlines()

    with Lease(store, "targetsweep run tiny.yaml"):
        driver = holder(store)
        assert driver is not None
        assert "running" not in "".join(shown())
        store.write_json(paths.progress(), {"driver": driver.id, "glance": GLANCE.as_json()})
        lines = shown()
        assert any(line.strip() == GLANCE.summary() for line in lines)
        assert any(line.startswith("B t30") and "39,000" in line for line in lines)
        assert lines[-1].split()[0] == "tiny"
        store.write_json(
            paths.progress(), {"driver": driver.id, "glance": {"of": "a later version"}}
        )
        assert "B t30" not in "".join(shown())
    store.write_json(paths.progress(), {"driver": driver.id, "glance": GLANCE.as_json()})
    assert "B t30" not in "".join(shown())  # a killed driver's words

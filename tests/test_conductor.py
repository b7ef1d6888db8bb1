"""From what trials report to ledger moves and files: a real store, no Ray, scripted trials."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.conductor import Conductor
from orchestrator.ledger import State
from orchestrator.plan import Plan
from orchestrator.retry import Cause, Decision
from orchestrator.store import Store
from tests.conducting import Ear, begin, break_with, finish, state, tell
from tests.driving import SETTINGS, conductor_of, tiny_plan, unit_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def conductor(plan: Plan, store: Store, ear: Ear) -> Conductor:
    return conductor_of(plan, store, [ear], slots=2)


# -- orders ----------------------------------------------------------------------------------------


def test_orders_are_written_before_a_trial_is_handed_out(
    conductor: Conductor, store: Store, plan: Plan
) -> None:
    config = conductor.next_trial()
    assert config is not None
    (teacher,) = plan.of_kind("teacher")
    assert config["unit"] == teacher.name
    run = store.read_json(paths.run_json(teacher.name)) or {}
    assert (run["key"], run["kind"], run["label"]) == (teacher.key, "teacher", teacher.label)
    request = store.read_json(paths.request_json(teacher.name)) or {}
    assert request["presets"] == [20, 40]
    assert request["attempt"] == config["attempt"]


@pytest.mark.parametrize(
    ("slots", "runs", "most", "every_s"),
    [(2, 1000, None, 0.5), (100, 1000, None, 2.0), (100, 30, None, 0.6), (100, 1000, 8, 0.5)],
)
def test_the_more_runs_at_once_the_less_often_each_reports(
    plan: Plan, store: Store, slots: int, runs: int, most: int | None, every_s: float
) -> None:
    """Else 50 of them would take the whole of the driver's core."""
    conductor = conductor_of(plan, store, slots=slots)
    conductor.ledger.capacity.most_runs = most
    config = conductor.next_trial()
    assert config is not None
    assert config["report_every_s"] == 0.5  # there are but a few units
    entry = conductor.ledger.entries[config["unit"]]
    conductor.ledger.entries = {f"{number}": entry for number in range(runs)}
    assert conductor._report_every_s(entry) == pytest.approx(every_s)


def test_a_trials_configuration_holds_names_and_paths_only(conductor: Conductor) -> None:
    config = conductor.next_trial()
    assert config is not None
    assert len(repr(config)) < 1000


def test_every_attempt_gets_its_own_request_and_name(conductor: Conductor, store: Store) -> None:
    seen = set()
    for _ in range(3):
        config = conductor.next_trial()
        assert config is not None
        request = store.read_json(paths.request_json(config["unit"])) or {}
        assert request["attempt"] == config["attempt"]
        seen.add(config["attempt"])
        conductor.on_end(config["unit"], lost=True)
    assert len(seen) == 3


def test_run_json_is_written_once(conductor: Conductor, store: Store) -> None:
    unit = begin(conductor)
    written = store.modified(paths.run_json(unit))
    conductor.on_end(unit, lost=True)
    assert begin(conductor) == unit
    assert store.modified(paths.run_json(unit)) == written


def test_a_damaged_run_json_is_written_anew(plan: Plan, store: Store, ear: Ear) -> None:
    (teacher,) = plan.of_kind("teacher")
    store.write_bytes(paths.run_json(teacher.name), b"{")
    begin(conductor_of(plan, store, [ear]))
    assert (store.read_json(paths.run_json(teacher.name)) or {})["key"] == teacher.key


# -- what trials say -------------------------------------------------------------------------------


def test_a_life_as_listeners_hear_it(conductor: Conductor, ear: Ear, plan: Plan) -> None:
    unit = begin(conductor)
    label = plan.of_kind("teacher")[0].label
    tell(conductor, unit, "started", first_step=8, warnings=["a state was passed over"])
    tell(conductor, unit, "evaluation", step=9, top1=19.5, images_per_s=100.0)
    tell(conductor, unit, "snapshot", preset=20, step=9, accuracy=19.5)
    tell(conductor, unit, "checkpoint", step=9)
    finish(conductor, unit, top1=41.0)
    assert ear.heard == [
        ("started", label, 8),
        ("warned", "a state was passed over"),
        ("snapshot", 20.0, 9, 19.5),
        ("changed", label),
        ("changed", label),
        ("finished", label, 20, 41.0),
        ("changed", label),
    ]
    assert conductor.steps_trained == 13
    assert conductor.live == {}


def test_students_of_a_snapshot_start_while_the_teacher_runs(
    conductor: Conductor, plan: Plan
) -> None:
    teacher = begin(conductor)
    begin(conductor)  # A, which needs nobody
    assert conductor.next_trial() is None
    tell(conductor, teacher, "snapshot", preset=40, step=30, accuracy=39.7)
    assert state(conductor, unit_of(plan, "B t40").name) is State.READY
    assert state(conductor, unit_of(plan, "B t20").name) is State.WAITING


def test_reports_of_units_that_do_not_run_are_ignored(conductor: Conductor, ear: Ear) -> None:
    unit = begin(conductor)
    finish(conductor, unit)
    heard = list(ear.heard)
    tell(conductor, unit, "checkpoint", step=99)
    assert ear.heard == heard


# -- failures --------------------------------------------------------------------------------------


def test_a_bug_is_recorded_with_its_traceback(
    conductor: Conductor, store: Store, ear: Ear, plan: Plan
) -> None:
    unit = begin(conductor)
    break_with(conductor, unit)
    failure = store.read_json(paths.failure(unit)) or {}
    assert failure == {
        "key": plan.of_kind("teacher")[0].key,
        "cause": "error",
        "message": "KeyError: 'x'",
        "traceback": "Traceback …",
        "where": "",
        "attempts": 1,
        "attempts_by_cause": {"error": 1},
    }
    assert state(conductor, unit) is State.FAILED
    assert [one[-1] for one in ear.of("failed")] == [Decision.GIVE_UP]
    assert len(ear.of("blocked")) == 6  # two files of targets, four students; each said once


def test_blocked_units_are_told_once(conductor: Conductor, ear: Ear) -> None:
    break_with(conductor, begin(conductor))
    break_with(conductor, begin(conductor))
    assert len(ear.of("blocked")) == 6


def test_a_lost_worker_is_tried_again_and_leaves_no_failure(
    conductor: Conductor, store: Store, ear: Ear
) -> None:
    unit = begin(conductor)
    tell(conductor, unit, "started", first_step=1)
    conductor.on_end(unit, lost=True)
    assert state(conductor, unit) is State.READY
    assert not store.exists(paths.failure(unit))
    assert ear.of("failed")[0][2:] == (Cause.WORKER_LOST, Decision.RETRY)
    assert begin(conductor) == unit


def test_a_worker_lost_four_times_is_given_up(conductor: Conductor, store: Store) -> None:
    unit = ""
    for _ in range(4):
        unit = begin(conductor)
        conductor.on_end(unit, lost=True)
    assert state(conductor, unit) is State.FAILED
    assert (store.read_json(paths.failure(unit)) or {})["attempts"] == 4


def test_a_trial_that_ends_without_a_word_counts_as_lost(conductor: Conductor, ear: Ear) -> None:
    conductor.on_end(begin(conductor), lost=False)
    assert ear.of("failed")[0][2] is Cause.WORKER_LOST


def test_an_accuracy_never_reached_is_a_failure_of_the_teacher_alone(
    conductor: Conductor, store: Store, ear: Ear, plan: Plan
) -> None:
    teacher = begin(conductor)
    tell(conductor, teacher, "snapshot", preset=20, step=9, accuracy=19.5)
    finish(conductor, teacher, "exhausted", missing=[40])
    failure = store.read_json(paths.failure(teacher)) or {}
    assert failure["cause"] == "accuracy not reached"
    assert "40% within teacher.max_steps = 300" in failure["message"]
    assert {label for _, label, _ in ear.of("blocked")} == {
        unit.label for unit in plan.units if unit.kind != "teacher" and "t40" in unit.label
    }
    assert state(conductor, unit_of(plan, "B t20").name) is State.READY


# -- stopping --------------------------------------------------------------------------------------


def test_stopping_raises_the_flag_and_starts_nothing(conductor: Conductor, store: Store) -> None:
    unit = begin(conductor)
    conductor.stop()
    assert store.exists(paths.stop_flag())
    assert conductor.next_trial() is None
    assert not conductor.finished
    finish(conductor, unit, "stopped")
    assert conductor.finished
    assert state(conductor, unit) is State.READY
    assert not store.exists(paths.failure(unit))


def test_interrupted_is_not_failed(conductor: Conductor, store: Store, ear: Ear) -> None:
    """A second Ctrl-C takes the process away while it saves."""
    unit = begin(conductor)
    conductor.stop()
    conductor.on_end(unit, lost=True)
    assert state(conductor, unit) is State.READY
    assert ear.of("failed") == []
    assert not store.exists(paths.failure(unit))


@pytest.mark.parametrize("is_last", [True, False])
def test_a_distributed_runs_own_last_word_counts(conductor: Conductor, is_last: bool) -> None:
    """Its trial assumes a good end, before or after the workers say that they were stopped."""
    unit = begin(conductor)
    conductor.stop()
    words = [{"reason": "done", "step": 0, "assumed": True}, {"reason": "stopped", "step": 10}]
    for word in words if is_last else reversed(words):
        tell(conductor, unit, "finished", **word)
    conductor.on_end(unit, lost=False)
    assert state(conductor, unit) is State.READY


def test_a_distributed_run_whose_last_word_got_lost_is_done(conductor: Conductor) -> None:
    unit = begin(conductor)
    tell(conductor, unit, "finished", reason="done", step=0, assumed=True)
    conductor.on_end(unit, lost=False)
    assert state(conductor, unit) is State.DONE


def test_a_bug_while_stopping_is_still_a_bug(conductor: Conductor, store: Store) -> None:
    unit = begin(conductor)
    conductor.stop()
    break_with(conductor, unit)
    assert state(conductor, unit) is State.FAILED
    assert store.exists(paths.failure(unit))


def test_a_run_that_finishes_while_stopping_is_done(conductor: Conductor) -> None:
    unit = begin(conductor)
    conductor.stop()
    finish(conductor, unit)
    assert state(conductor, unit) is State.DONE


def test_a_store_taken_over_by_another_driver(plan: Plan, store: Store) -> None:
    """What runs is asked to end, by a flag that stops none of the other's; nothing begins."""
    conductor = conductor_of(plan, store)
    lost = conductor._lost = threading.Event()
    unit = begin(conductor)
    lost.set()
    assert not conductor.finished
    assert store.exists(paths.stop_flag(SETTINGS.driver))
    finish(conductor, unit)
    assert conductor.finished
    assert conductor.next_trial() is None


@pytest.mark.parametrize("cause", ["superseded", "error"])
def test_what_fails_in_a_store_taken_over_is_the_others(
    plan: Plan, store: Store, ear: Ear, cause: str
) -> None:
    conductor = conductor_of(plan, store, [ear])
    lost = conductor._lost = threading.Event()
    unit = begin(conductor)
    if cause == "error":
        lost.set()  # the lease has noticed before
    tell(conductor, unit, "failed", cause=cause, message="SupersededError: given to another")
    conductor.on_end(unit, lost=False)
    assert lost.is_set()
    assert conductor.next_trial() is None
    assert conductor.finished
    assert state(conductor, unit) is State.READY
    assert not ear.of("failed")
    assert not ear.of("changed")
    assert not store.exists(paths.failure(unit))

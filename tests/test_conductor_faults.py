"""Attempts that fail: what the driver alone can know of them, and what becomes of the sweep."""

from __future__ import annotations

import errno
import io
import json
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import paths
from orchestrator.admission import Shape
from orchestrator.conductor import Conductor
from orchestrator.errors import StoreError
from orchestrator.glance import Glance
from orchestrator.interrupts import heed_flag
from orchestrator.ledger import State
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.rayprocesses import Process
from orchestrator.retry import Cause, Decision
from orchestrator.stopping import watching
from orchestrator.store import Store
from tests.conducting import Ear, begin, break_with, finish, state, tell
from tests.driving import SETTINGS, TINY, Clock, conductor_of, tiny_plan


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


# -- causes that the driver alone can know ---------------------------------------------------------

THREE = (
    TINY.replace("  teacher: {max_steps: 300}\n", "")
    + "grids: [{axes: {strategy: [A], seed: [0, 1, 2]}}]\n"
)
"""Of three runs that need nobody."""

PROCESS = {"node_id": "ab" * 28, "pid": 4711, "began": 17.0}


def causes(ear: Ear) -> list[tuple[Cause, Decision]]:
    return [(cause, decision) for _, _, cause, decision in ear.of("failed")]


def test_a_hang_is_told_by_the_stacks_it_left(conductor: Conductor, store: Store, ear: Ear) -> None:
    config = conductor.next_trial()
    assert config is not None
    text = f"{config['attempt']}\nworker 1 of it did nothing for 900 s\nThread 0x1: in sleep"
    store.write_bytes(paths.hang(config["unit"], 1), text.encode())
    conductor.on_end(config["unit"], lost=True)
    assert causes(ear) == [(Cause.HUNG, Decision.RETRY)]
    (failure,) = conductor.ledger.entries[config["unit"]].attempts.failures
    assert "worker 1 of it did nothing for 900 s" in failure.message
    assert "Thread 0x1: in sleep" in failure.traceback


def test_stacks_of_an_earlier_attempt_say_nothing(
    conductor: Conductor, store: Store, ear: Ear
) -> None:
    unit = begin(conductor)
    store.write_bytes(paths.hang(unit, 0), b"0-earlier\nstacks")
    conductor.on_end(unit, lost=True)
    assert causes(ear) == [(Cause.WORKER_LOST, Decision.RETRY)]


def test_a_hang_that_comes_back_leaves_its_stacks_in_failure_json(
    conductor: Conductor, store: Store
) -> None:
    unit = ""
    for _ in range(3):
        config = conductor.next_trial()
        assert config is not None
        unit = config["unit"]
        store.write_bytes(paths.hang(unit, 0), f"{config['attempt']}\nstacks".encode())
        conductor.on_end(unit, lost=True)
    failure = store.read_json(paths.failure(unit)) or {}
    assert (failure["cause"], failure["traceback"]) == ("hung", "stacks")
    assert failure["attempts_by_cause"] == {"hung": 3}


def test_who_dies_with_its_node_was_preempted(plan: Plan, store: Store, ear: Ear) -> None:
    conductor = conductor_of(plan, store, [ear], is_node_gone=lambda node: node == "ab" * 28)
    unit = begin(conductor)
    tell(conductor, unit, "started", first_step=1, processes=[PROCESS])
    conductor.on_end(unit, lost=True)
    assert causes(ear) == [(Cause.PREEMPTED, Decision.RETRY)]


def test_a_distributed_run_that_lost_a_worker_with_its_node(
    plan: Plan, store: Store, ear: Ear
) -> None:
    """Its trial lives and says that a worker was lost; that the node went the driver knows."""
    conductor = conductor_of(plan, store, [ear], is_node_gone=lambda node: node == "ab" * 28)
    unit = begin(conductor)
    there = PROCESS | {"node_id": "cd" * 28}
    tell(conductor, unit, "started", first_step=1, processes=[there, PROCESS])
    tell(conductor, unit, "failed", cause="worker lost", message="ActorDiedError: …")
    conductor.on_end(unit, lost=False)
    assert causes(ear) == [(Cause.PREEMPTED, Decision.RETRY)]


def test_where_a_distributed_run_lies_its_workers_say(plan: Plan, store: Store, ear: Ear) -> None:
    """Not the process that hosts it, which speaks first, perhaps from elsewhere."""
    conductor = conductor_of(plan, store, [ear], slots=8)
    pair, three = Shape(workers=2), Shape(workers=3)
    rooms = conductor.ledger.capacity.rooms
    rooms.nodes = {"ab" * 28: 4.0, "cd" * 28: 2.0}
    unit = begin(conductor)
    conductor.ledger.entries[unit].shape = pair
    rooms.begin(unit, pair)
    assert not rooms.has_room(three)
    tell(conductor, unit, "alive", processes=[PROCESS])
    assert not rooms.has_room(three)
    there = PROCESS | {"node_id": "cd" * 28}
    tell(conductor, unit, "started", first_step=1, processes=[there, there | {"pid": 4712}])
    assert rooms.has_room(three)
    assert rooms.has_room(Shape(workers=4))
    finish(conductor, unit)
    assert rooms.has_room(three)


def test_a_warm_process_on_a_node_that_leaves_costs_nobody_an_attempt(
    conductor: Conductor, ear: Ear
) -> None:
    unit = begin(conductor)
    tell(conductor, unit, "failed", cause="preempted", message="…", begun=False)
    conductor.on_end(unit, lost=True)
    assert ear.of("failed") == []
    assert conductor.ledger.entries[unit].attempts.failures == []
    assert begin(conductor) == unit


def test_the_words_of_ray_on_a_death_are_kept(conductor: Conductor, ear: Ear) -> None:
    unit = begin(conductor)
    conductor.on_end(unit, lost=True, said="Failure # 1\nkilled: the node is running low on memory")
    assert causes(ear) == [(Cause.OUT_OF_MEMORY, Decision.RETRY)]


# -- silence ---------------------------------------------------------------------------------------


def watched(plan: Plan, store: Store, ear: Ear) -> tuple[Conductor, Clock, list[Process]]:
    clock, killed = Clock(), list[Process]()
    return conductor_of(plan, store, [ear], clock=clock, kill=killed.append), clock, killed


def pass_time(conductor: Conductor, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        conductor.look()


def test_a_frozen_trial_is_killed_and_tried_again(plan: Plan, store: Store, ear: Ear) -> None:
    conductor, clock, killed = watched(plan, store, ear)
    unit = begin(conductor)
    tell(conductor, unit, "alive", processes=[PROCESS])
    pass_time(conductor, clock, 899)
    assert killed == []
    pass_time(conductor, clock, 1)
    assert killed == [Process.parse(PROCESS)]
    conductor.on_end(unit, lost=True)
    assert causes(ear) == [(Cause.HUNG, Decision.RETRY)]
    (failure,) = conductor.ledger.entries[unit].attempts.failures
    assert "said nothing for 900 s" in failure.message


def test_a_sign_of_life_is_enough(plan: Plan, store: Store, ear: Ear) -> None:
    conductor, clock, killed = watched(plan, store, ear)
    unit = begin(conductor)
    for _ in range(10):
        tell(conductor, unit, "alive", processes=[PROCESS])
        pass_time(conductor, clock, 600)
    assert killed == []


def test_what_does_not_die_is_killed_again(plan: Plan, store: Store, ear: Ear) -> None:
    conductor, clock, killed = watched(plan, store, ear)
    unit = begin(conductor)
    tell(conductor, unit, "alive", processes=[PROCESS])
    pass_time(conductor, clock, 1800)
    assert len(killed) == 2


def test_a_trial_that_waits_for_its_devices_is_wondered_about(
    plan: Plan, store: Store, ear: Ear
) -> None:
    conductor, clock, killed = watched(plan, store, ear)
    begin(conductor)
    pass_time(conductor, clock, 3599)
    assert ear.of("warned") == []
    pass_time(conductor, clock, 1)
    assert "not said a word" in ear.of("warned")[0][1]
    assert killed == []


def test_a_driver_that_slept_blames_nobody(plan: Plan, store: Store, ear: Ear) -> None:
    """A laptop was closed: the trials slept as well, or spoke to nobody."""
    conductor, clock, killed = watched(plan, store, ear)
    tell(conductor, begin(conductor), "alive", processes=[PROCESS])
    clock.now += 100_000
    conductor.look()
    pass_time(conductor, clock, 899)
    assert killed == []


def test_a_kill_that_cannot_be_asked_for_is_a_warning(plan: Plan, store: Store, ear: Ear) -> None:
    def kill(process: Process) -> None:
        raise ConnectionError("no head")

    clock = Clock()
    conductor = conductor_of(plan, store, [ear], clock=clock, kill=kill)
    tell(conductor, begin(conductor), "alive", processes=[PROCESS])
    pass_time(conductor, clock, 900)
    assert "no head" in ear.of("warned")[0][1]


# -- waiting ---------------------------------------------------------------------------------------


def test_a_lost_worker_is_given_some_seconds(plan: Plan, store: Store, ear: Ear) -> None:
    conductor, clock, _ = watched(plan, store, ear)
    unit = begin(conductor)
    conductor.on_end(unit, lost=True)
    other = begin(conductor)
    assert other != unit
    finish(conductor, other)
    assert conductor.next_trial() is None
    assert not conductor.finished
    clock.now += 1
    assert begin(conductor) == unit


# -- files that were damaged -----------------------------------------------------------------------


def test_damaged_files_are_set_aside_and_their_unit_is_left(
    plan: Plan, store: Store, ear: Ear
) -> None:
    conductor = conductor_of(plan, store, [ear], slots=9)
    finish(conductor, begin(conductor))
    unit = begin(conductor)
    damaged = ["runs/teacher-0/snapshots/acc-20.json", "runs/teacher-0/snapshots/acc-20.gone"]
    store.write_bytes(damaged[0], b"{")
    tell(conductor, unit, "failed", cause="damaged file", message="…", damaged=damaged)
    conductor.on_end(unit, lost=False)
    assert causes(ear) == [(Cause.DAMAGED, Decision.REDO)]
    assert state(conductor, unit) is State.REDO
    assert not store.exists(damaged[0])
    assert not store.exists(paths.failure(unit))
    assert len(store.list(paths.damaged_dir())) == 1
    (line,) = [message for _, message in ear.of("warned")]
    assert damaged[0] in line


def test_a_name_that_leaves_the_store_is_not_followed(
    conductor: Conductor, store: Store, ear: Ear
) -> None:
    unit = begin(conductor)
    tell(conductor, unit, "failed", cause="damaged file", message="…", damaged=["../etc/passwd"])
    conductor.on_end(unit, lost=False)
    assert "not a path inside the store" in ear.of("warned")[0][1]


# -- a store that fails ----------------------------------------------------------------------------


class FailingStore(Store):
    """Takes so many writes, then says the same of every one, as a full disk does."""

    lives = 10**9
    error = errno.ENOSPC

    def write_bytes(self, rel: str, data: bytes) -> None:
        if self.lives <= 0:
            with self._errors("write", rel):
                raise OSError(self.error, "No space left on device")
        self.lives -= 1
        super().write_bytes(rel, data)


@pytest.fixture
def failing(tmp_path: Path) -> FailingStore:
    return FailingStore(tmp_path / "store")


STORE_FAULT = {"cause": "store", "message": "StoreError: cannot write x: disk full"}


def test_a_store_that_is_full_for_everybody_stops_the_sweep(
    plan: Plan, failing: FailingStore, ear: Ear
) -> None:
    """Units are left as they are: they did nothing wrong."""
    conductor = conductor_of(plan, failing, [ear], slots=2)
    one, two = begin(conductor), begin(conductor)
    failing.lives = 0
    for unit in (one, two):
        tell(conductor, unit, "failed", **STORE_FAULT)
        conductor.on_end(unit, lost=False)
        assert state(conductor, unit) is State.READY
    assert conductor.finished
    early = conductor.ledger.stopped_early
    assert early is not None
    assert early.cause is Cause.STORE
    assert ear.of("failed") == []
    assert len([1 for _, line in ear.of("warned") if "cannot be written any more" in line]) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_store_with_no_room_for_a_checkpoint_stops_the_sweep(
    plan: Plan, store: Store, ear: Ear, number: int
) -> None:
    """Though a smaller file still fits."""
    conductor = conductor_of(plan, store, [ear])
    unit = begin(conductor)
    tell(conductor, unit, "failed", **STORE_FAULT, errno=number)
    conductor.on_end(unit, lost=False)
    assert state(conductor, unit) is State.READY
    assert conductor.ledger.stopped_early is not None
    assert ear.of("failed") == []


def test_a_store_that_stuttered_is_tried_again(plan: Plan, store: Store, ear: Ear) -> None:
    conductor = conductor_of(plan, store, [ear])
    unit = begin(conductor)
    tell(conductor, unit, "failed", **STORE_FAULT)
    conductor.on_end(unit, lost=False)
    assert causes(ear) == [(Cause.STORE, Decision.RETRY)]
    assert not store.exists(paths.probe())
    assert begin(conductor) == unit


@pytest.mark.parametrize("lives", [0, 1])
def test_orders_that_cannot_be_written_stop_the_sweep(
    plan: Plan, failing: FailingStore, ear: Ear, lives: int
) -> None:
    """Never an exception to Tune, at whichever of the two files."""
    failing.lives = lives
    conductor = conductor_of(plan, failing, [ear])
    assert conductor.next_trial() is None
    assert conductor.finished
    assert conductor.live == {}
    assert conductor.ledger.capacity.used == 0
    assert conductor.ledger.stopped_early is not None


def test_a_failure_that_cannot_be_recorded_stops_the_sweep(
    plan: Plan, failing: FailingStore, ear: Ear
) -> None:
    conductor = conductor_of(plan, failing, [ear])
    unit = begin(conductor)
    failing.lives = 0
    break_with(conductor, unit)
    assert state(conductor, unit) is State.FAILED
    assert conductor.ledger.stopped_early is not None
    assert conductor.finished


def test_a_stop_that_cannot_be_written_is_a_warning(
    plan: Plan, failing: FailingStore, ear: Ear
) -> None:
    conductor = conductor_of(plan, failing, [ear])
    begin(conductor)
    failing.lives = 0
    conductor.stop()
    assert "goes on to its end" in ear.of("warned")[0][1]
    assert conductor.next_trial() is None


def test_store_errors_know_their_number(failing: FailingStore) -> None:
    failing.lives = 0
    with pytest.raises(StoreError) as caught:
        failing.write_bytes("x", b"")
    assert caught.value.errno == errno.ENOSPC


# -- bugs of the sweep itself ----------------------------------------------------------------------


def test_a_bug_of_every_run_stops_early_with_its_traceback(
    plan: Plan, store: Store, ear: Ear
) -> None:
    conductor = conductor_of(plan, store, [ear], slots=9)
    teacher = begin(conductor)
    for preset in (20, 40):
        tell(conductor, teacher, "snapshot", preset=preset, step=9, accuracy=preset)
    for _ in range(3):
        break_with(conductor, begin(conductor))
    early = conductor.ledger.stopped_early
    assert early is not None
    assert early.traceback == "Traceback …"
    assert conductor.next_trial() is None


def test_the_flag_of_a_lost_store_is_nobodys_interruption(
    plan: Plan, store: Store, ear: Ear
) -> None:
    """The driver finds its own flag: a small file still fits on a full disk."""
    conductor, interrupted = conductor_of(plan, store, [ear]), list[int]()
    unit = begin(conductor)
    tell(conductor, unit, "failed", **STORE_FAULT, errno=errno.ENOSPC)
    conductor.on_end(unit, lost=False)
    driver = SETTINGS.driver
    assert store.exists(paths.stop_flag(driver))
    progress = Progress(Console(file=io.StringIO()), done_before=0)
    with watching(store, driver, partial(heed_flag, conductor, progress, interrupted)):
        pass
    assert interrupted == []


def test_runs_that_all_fail_alike_are_told_at_once_and_where(
    tmp_path: Path, store: Store, ear: Ear
) -> None:
    conductor = conductor_of(tiny_plan(tmp_path, text=THREE), store, [ear], slots=8)
    conductor.ledger.capacity.rooms.nodes = {"ab" * 28: 4.0, "cd" * 28: 0.0}  # others' GPUs
    for unit in [begin(conductor) for _ in range(3)]:
        tell(conductor, unit, "alive", processes=[PROCESS | {"host": "b01"}])
        break_with(conductor, unit)
    (told,) = [text for _, text in ear.of("warned") if "alike" in text]
    assert "all on b01 (node abababab) (error: KeyError: 'x'): nothing more is begun" in told
    failures = [store.read_json(paths.failure(name)) or {} for name in store.list("runs")]
    assert {one["where"] for one in failures} == {"b01 (node abababab)"}
    glance_of = Progress(Console(file=io.StringIO()), done_before=0)
    glance_of.watch(conductor)
    glance = glance_of.glance()
    assert glance is not None
    assert "nothing more is begun, runs fail alike" in glance.summary()


def test_a_node_set_aside_is_told_and_avoided(tmp_path: Path, store: Store, ear: Ear) -> None:
    conductor = conductor_of(tiny_plan(tmp_path, text=THREE), store, [ear], slots=3)
    conductor.ledger.capacity.rooms.nodes = {"ab" * 28: 3.0, "cd" * 28: 3.0}
    for unit in [begin(conductor) for _ in range(3)]:
        tell(conductor, unit, "alive", processes=[PROCESS | {"host": "b01"}])
        break_with(conductor, unit)
    (told,) = [text for _, text in ear.of("warned")]
    assert "b01 (node abababab) is set aside" in told
    assert "(error: KeyError: 'x')" in told
    config = conductor.next_trial()
    assert config is not None
    assert config["avoid"] == ["ab" * 28]
    progress = Progress(Console(file=io.StringIO()), done_before=0)
    progress.watch(conductor)
    glance = progress.glance()
    assert glance is not None
    assert glance.summary().endswith(" · set aside: b01 (node abababab)")
    assert Glance.from_json(json.loads(json.dumps(glance.as_json()))) == glance
    finish(conductor, str(config["unit"]))
    for unit in [begin(conductor), begin(conductor)]:
        finish(conductor, unit)
    assert conductor.finished
    assert conductor.ledger.in_state(State.FAILED) == []


def test_a_distributed_run_failed_where_its_worker_did(plan: Plan, store: Store, ear: Ear) -> None:
    """Not where its host is, nor on all of its nodes."""
    conductor = conductor_of(plan, store, [ear], slots=8)
    wheres = []
    for told in ([], [PROCESS, PROCESS | {"node_id": "cd" * 28}]):
        unit = begin(conductor)
        tell(conductor, unit, "alive", processes=[PROCESS | {"node_id": "ef" * 28}], is_host=True)
        if told:
            tell(conductor, unit, "started", first_step=1, processes=told)
        assert conductor.live[unit].node == ""
        failed = PROCESS | {"node_id": "cd" * 28, "host": "b01"}
        tell(conductor, unit, "failed", cause="error", message="KeyError", processes=[failed])
        conductor.on_end(unit, lost=False)
        wheres.append((store.read_json(paths.failure(unit)) or {})["where"])
    assert wheres == ["b01 (node cdcdcdcd)"] * 2

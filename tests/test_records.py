"""The files of one run: rows stay, states only move forward, damage is passed over."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch

from orchestrator import paths
from orchestrator.errors import DamagedFileError, LostNeedError, StoreError
from orchestrator.faults import failure_report
from orchestrator.records import Records
from orchestrator.store import Store, store_errors
from orchestrator.weightsfiles import read_snapshot, read_snapshot_weights
from tests.driving import Killed, MortalStore, checkpoints, rows_of
from trainers.evaluate import STUDENT_COLUMNS
from trainers.events import Checkpoint, Row, Snapshot
from trainers.spec import TeacherRef

NAME = "student-0123456789abcdef"
TEACHER = "teacher-0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def records_of(store: Store, name: str = NAME, attempt: str | None = None) -> Records:
    return Records(store, name, STUDENT_COLUMNS, attempt=attempt)


def row(step: int, stamp: int = 0) -> Row:
    return {"step": step, "top1_h": float(step), "timestamp_ms": 1000 + step + stamp}


def state_at(step: int, keep_as: str | None = None) -> Checkpoint:
    return Checkpoint(step=step, state={"step": step, "w": torch.ones(3)}, keep_as=keep_as)


def snapshot_at(preset: float, step: int) -> Snapshot:
    weights = {"w": torch.full((2,), preset)}
    return Snapshot(preset=preset, step=step, accuracy=preset, alpha=1.0, weights=weights)


def train(store: Store, steps: range, *, every: int = 2, stamp: int = 0) -> Records:
    """A run from the last state in the store: a row a step, a state every few."""
    records = records_of(store)
    start, _ = records.load_state()
    for step in range(start + 1, steps.stop):
        records.add(row(step, stamp), replayed=False)
        if step % every == 0:
            records.save_checkpoint(state_at(step))
    return records


# -- rows ------------------------------------------------------------------------------------------


def test_a_row_is_never_replaced(store: Store) -> None:
    records = records_of(store)
    assert records.add(row(10), replayed=False)
    records.save_rows()
    again = records_of(store)
    assert not again.add(row(10, stamp=99), replayed=True)
    again.save_rows()
    (kept,) = rows_of(store, NAME)
    assert (kept["timestamp_ms"], kept["replayed"]) == (1010, False)


def test_a_row_that_comes_out_otherwise_is_told_once(store: Store) -> None:
    records = records_of(store)
    records.add({**row(10), "train_kl": float("nan")}, replayed=False)
    records.add(row(20), replayed=False)
    assert not records.add({**row(10, stamp=5), "train_kl": float("nan")}, replayed=True)
    assert records.take_warnings() == []
    for step in (10, 20):
        assert not records.add({**row(step), "top1_h": 0.5}, replayed=True)
    (told,) = records.take_warnings()
    assert "step 10 now gives top1_h 0.5, the stored row (kept) has 10.0" in told
    assert records.take_warnings() == []


def test_the_last_row_that_training_passes_again(store: Store) -> None:
    records = records_of(store)
    for step in (10, 20, 30):
        records.add(row(step), replayed=False)
    assert records.seen_again(0, 40) == {30}
    assert records.seen_again(0, 25) == {20}
    assert records.seen_again(30, 40) == set()


def test_rows_are_sorted_and_have_every_column(store: Store) -> None:
    records = records_of(store)
    for step in (30, 10, 20):
        records.add(row(step), replayed=step == 10)
    records.save_rows()
    rows = rows_of(store, NAME)
    assert [one["step"] for one in rows] == [10, 20, 30]
    assert [one["replayed"] for one in rows] == [True, False, False]
    assert tuple(rows[0]) == STUDENT_COLUMNS


def test_rows_that_no_state_covers_are_not_written(store: Store) -> None:
    train(store, range(1, 6), every=2)
    assert [one["step"] for one in rows_of(store, NAME)] == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\0" * 100])
def test_damaged_metrics_count_as_none(store: Store, damage: bytes) -> None:
    train(store, range(1, 4))
    store.write_bytes(paths.metrics(NAME), damage)
    records = records_of(store)
    assert records.rows == {}
    (warning,) = records.warnings
    assert paths.metrics(NAME) in warning
    assert len(store.list(paths.damaged_dir())) == 1
    assert records.checkpoint_steps() == {}  # no row leads to them
    records.add(row(5), replayed=False)
    records.save_rows()
    assert [one["step"] for one in rows_of(store, NAME)] == [5]


@pytest.mark.parametrize("byte", range(0, 700, 23))
def test_a_flipped_byte_in_metrics_is_noticed(store: Store, byte: int) -> None:
    train(store, range(1, 9))
    store.write_json(paths.result(NAME), {"status": "complete"})
    data = bytearray(store.read_bytes(paths.metrics(NAME)))
    data[byte] ^= 0xFF
    store.write_bytes(paths.metrics(NAME), bytes(data))
    assert records_of(store).rows == {}
    assert not store.exists(paths.result(NAME))  # it rested on the rows
    assert len(store.list(paths.damaged_dir())) == 2


# -- states ----------------------------------------------------------------------------------------


def test_the_latest_state_below_a_step(store: Store) -> None:
    records = records_of(store, TEACHER)
    for preset, step in [(10, 3), (20, 8)]:
        records.save_snapshot(snapshot_at(preset, step), "key")
        records.save_checkpoint(state_at(step, keep_as=f"{preset}"))
    records.save_checkpoint(state_at(12))
    assert records.load_state()[0] == 12
    assert records.load_state(before=12)[0] == 8
    assert records.load_state(before=8)[0] == 3
    assert records.load_state(before=3) == (0, None)
    step, state = records.load_state(before=9)
    assert state is not None
    assert (step, state["step"]) == (8, 8)


def test_only_the_last_rolling_state_stays_and_all_kept_ones(store: Store) -> None:
    records = records_of(store, TEACHER)
    records.save_snapshot(snapshot_at(10, 3), "key")
    records.save_checkpoint(state_at(3, keep_as="10"))
    for step in (5, 7):
        records.save_checkpoint(state_at(step))
    assert checkpoints(store, TEACHER) == ["acc-10.ckpt", "step-00000007.ckpt"]


def test_a_replay_never_puts_a_state_before_a_later_one(store: Store) -> None:
    records = records_of(store)
    records.save_checkpoint(state_at(20))
    records.save_checkpoint(state_at(13))
    assert checkpoints(store, NAME) == ["step-00000020.ckpt"]


@pytest.mark.parametrize("cut", [0, 10, 52, -1])
def test_a_damaged_state_is_set_aside_with_a_warning(store: Store, cut: int) -> None:
    records = records_of(store, TEACHER)
    records.save_snapshot(snapshot_at(10, 3), "key")
    records.save_checkpoint(state_at(3, keep_as="10"))
    records.save_checkpoint(state_at(9))
    rel = paths.checkpoint(TEACHER, "step-00000009")
    store.write_bytes(rel, store.read_bytes(rel)[:cut])
    assert records.load_state()[0] == 3
    (warning,) = records.warnings
    (kept,) = store.list(paths.damaged_dir())
    assert f"damaged: {rel} (its checksum does not fit), set aside as damaged/{kept}" in warning
    assert checkpoints(store, TEACHER) == ["acc-10.ckpt"]


def test_a_state_that_cannot_be_read_now_is_not_passed_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a moment's fault of the network would cost all that was trained."""
    records = records_of(store)
    records.save_checkpoint(state_at(4))
    real = store.read_bytes
    error: OSError = OSError(errno.EIO, "Input/output error")

    def failing(rel: str) -> bytes:
        if rel.endswith(".ckpt"):
            with store_errors("read", rel):
                raise error
        return real(rel)

    monkeypatch.setattr(store, "read_bytes", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        records.load_state()


class StaleStore(Store):
    """A store on NFS: goes by the listing that a run's states had at first, until it changes their
    folder itself. drops: leaves out what a stat does not find, as a local store does. stays: until
    its time is over, whatever it changes."""

    def __init__(self, root: Path, *, drops: bool = False, stays: bool = False) -> None:
        super().__init__(root)
        self.old: list[str] | None = super().list(paths.checkpoint_dir(NAME))
        self.drops = drops
        self.stays = stays

    def list(self, rel: str = "") -> list[str]:
        if self.old is None or rel != paths.checkpoint_dir(NAME):
            return super().list(rel)
        return [file for file in self.old if not self.drops or self.exists(f"{rel}/{file}")]

    def write_bytes(self, rel: str, data: bytes) -> None:
        super().write_bytes(rel, data)
        if rel.startswith(paths.checkpoint_dir(NAME)) and not self.stays:
            self.old = None


@pytest.mark.parametrize("drops", [False, True])
def test_a_state_that_another_node_wrote_meanwhile_is_found(tmp_path: Path, drops: bool) -> None:
    """By an old listing there would be none, and all that was trained would be trained again."""
    elsewhere = records_of(Store(tmp_path / "store"))
    elsewhere.add(row(4), replayed=False)
    elsewhere.save_checkpoint(state_at(4))
    here = StaleStore(tmp_path / "store", drops=drops)
    elsewhere.save_checkpoint(state_at(5))
    assert records_of(here).load_state()[0] == 5
    assert checkpoints(here, NAME) == ["step-00000005.ckpt"]
    assert not here.exists(paths.listing_probe(NAME))


def test_while_a_listing_stays_old_a_run_is_tried_again(tmp_path: Path) -> None:
    elsewhere = records_of(Store(tmp_path / "store"))
    elsewhere.save_checkpoint(state_at(4))
    here = StaleStore(tmp_path / "store", stays=True)
    elsewhere.save_checkpoint(state_at(5))
    with pytest.raises(StoreError, match="an old one") as caught:
        records_of(here).load_state()
    report = failure_report(pickle.loads(pickle.dumps(caught.value)))
    assert (report["cause"], "errno" in report) == ("store", False)
    reader = Records(here, NAME, STUDENT_COLUMNS, writes=False)
    assert reader.load_state() == (0, None)  # worker 0's start is what counts
    assert "passed over" in reader.warnings[0]
    here.old = None  # its time is over
    assert records_of(here).load_state()[0] == 5


def test_states_that_are_really_gone_hold_nobody_up(tmp_path: Path) -> None:
    """Listed, and deleted before they could be read: by the next look there are none."""
    store = Store(tmp_path / "store")
    records_of(store).save_checkpoint(state_at(4))
    here = StaleStore(tmp_path / "store")
    records_of(store).drop_checkpoints()
    assert records_of(here).load_state() == (0, None)


def test_workers_that_only_read_leave_damage_where_it_is(store: Store) -> None:
    records = records_of(store)
    records.save_checkpoint(state_at(4))
    rel = paths.checkpoint(NAME, "step-00000004")
    store.write_bytes(rel, store.read_bytes(rel)[:-1])
    store.write_bytes(paths.metrics(NAME), b"")
    other = Records(store, NAME, STUDENT_COLUMNS, writes=False)
    assert (other.rows, other.load_state()) == ({}, (0, None))
    other.drop_checkpoints()
    assert (other.warnings, store.list(paths.damaged_dir())) == ([], [])
    assert checkpoints(store, NAME) == ["step-00000004.ckpt"]


def test_a_flipped_bit_in_a_state_is_noticed(store: Store) -> None:
    records = records_of(store)
    records.save_checkpoint(state_at(4))
    rel = paths.checkpoint(NAME, "step-00000004")
    data = bytearray(store.read_bytes(rel))
    data[len(data) // 2] ^= 1
    store.write_bytes(rel, bytes(data))
    assert records.load_state() == (0, None)


def test_strange_files_among_the_states_are_left_alone(store: Store) -> None:
    store.write_bytes(f"{paths.checkpoint_dir(NAME)}/step-12.ckpt", b"x")
    store.write_bytes(f"{paths.checkpoint_dir(NAME)}/notes.txt", b"x")
    store.write_bytes(f"{paths.checkpoint_dir(NAME)}/acc-30.ckpt", b"x")  # without its snapshot
    assert records_of(store).checkpoint_steps() == {}


def test_a_damaged_snapshot_record_does_not_stop_the_teacher(store: Store) -> None:
    """Its preset counts as not harvested, its kept state as not there."""
    records = records_of(store, TEACHER)
    for preset, step in [(10, 3), (20, 8)]:
        records.save_snapshot(snapshot_at(preset, step), "key")
        records.save_checkpoint(state_at(step, keep_as=f"{preset}"))
    store.write_bytes(paths.snapshot_json(TEACHER, 20), b"{")
    assert records.snapshots().keys() == {10}
    assert records.load_state()[0] == 8  # the rolling one
    store.write_bytes(paths.snapshot_json(TEACHER, 10), b'{"preset": 10}')
    assert records.snapshots() == {}


# -- snapshots -------------------------------------------------------------------------------------


def ref(accuracy: float, least: float | None = None) -> TeacherRef:
    return TeacherRef(
        key=TEACHER.removeprefix("teacher-") + "0" * 48, accuracy=accuracy, least=least
    )


def test_a_snapshot_reads_back_with_its_digest(store: Store) -> None:
    records_of(store, TEACHER).save_snapshot(snapshot_at(12.5, 7), "k" * 64)
    weights, digest = read_snapshot_weights(store, ref(12.5))
    assert weights["w"].tolist() == [12.5, 12.5]
    assert read_snapshot(store, ref(12.5)) == {
        "preset": 12.5, "step": 7, "accuracy": 12.5, "alpha": 1.0, "digest": digest,
        "teacher": "k" * 64,
    }  # fmt: skip


def test_weights_other_than_saved_are_refused(store: Store) -> None:
    records_of(store, TEACHER).save_snapshot(snapshot_at(30, 7), "key")
    rel = paths.snapshot_weights(TEACHER, 30)
    store.write_bytes(rel, store.read_bytes(rel)[:-1] + b"\xff")
    with pytest.raises(DamagedFileError, match="its digest does not fit") as caught:
        read_snapshot_weights(store, ref(30))
    assert caught.value.damaged == [rel]
    store.write_bytes(paths.snapshot_json(TEACHER, 30), b"{}")
    with pytest.raises(DamagedFileError) as caught:
        read_snapshot_weights(store, ref(30))
    assert caught.value.damaged == [paths.snapshot_json(TEACHER, 30)]


def test_an_untrained_net_is_no_teacher_above_chance(store: Store) -> None:
    """Set aside like whatever is damaged, it is harvested anew."""
    records_of(store, TEACHER).save_snapshot(snapshot_at(2, 0), "key")
    assert read_snapshot(store, ref(2, least=1.5))["accuracy"] == 2
    with pytest.raises(DamagedFileError, match=r"2% counts from 2\.5% on") as caught:
        read_snapshot(store, ref(2, least=2.5))
    assert caught.value.damaged == [paths.snapshot_json(TEACHER, 2)]


def test_a_snapshot_that_is_not_there_says_what_to_do(store: Store) -> None:
    with pytest.raises(LostNeedError, match="has no snapshot at 30%") as caught:
        read_snapshot(store, ref(30))
    assert caught.value.damaged == []
    records_of(store, TEACHER).save_snapshot(snapshot_at(30, 7), "key")
    store.delete(paths.snapshot_weights(TEACHER, 30))
    with pytest.raises(LostNeedError, match=r"acc-30\.safetensors is gone"):
        read_snapshot_weights(store, ref(30))


def test_a_snapshot_that_is_there_is_not_replaced(store: Store) -> None:
    """Its students learnt from it; harvested again elsewhere, it may come out otherwise."""
    records = records_of(store, TEACHER)
    records.save_snapshot(snapshot_at(30, 7), "key")
    before = read_snapshot_weights(store, ref(30))[1]
    other = Snapshot(preset=30, step=7, accuracy=30, alpha=1.0, weights={"w": torch.zeros(2)})
    records.save_snapshot(other, "key")
    assert read_snapshot_weights(store, ref(30))[1] == before
    (warning,) = records.warnings
    assert "acc-30 is not the one recorded" in warning


def test_presets_that_rows_lead_to_need_not_be_looked_for(store: Store) -> None:
    records = records_of(store, TEACHER)
    for preset, step in [(10, 0), (20, 8)]:
        records.save_snapshot(snapshot_at(preset, step), "key")
    assert records.traced() == set()
    records.add(row(0), replayed=False)
    assert records.traced() == {10}
    records.add(row(8), replayed=False)
    assert records.traced() == {10, 20}


# -- the result, and attempts ----------------------------------------------------------------------


def test_a_result_removes_the_failure(store: Store) -> None:
    store.write_json(paths.failure(NAME), {"message": "boom"})
    records_of(store).save_result({"status": "complete"})
    assert not store.exists(paths.failure(NAME))


def test_the_attempt_that_was_replaced_writes_nothing(store: Store) -> None:
    store.write_json(paths.request_json(NAME), {"attempt": "first"})
    records = records_of(store, attempt="first")
    records.add(row(1), replayed=False)
    records.save_checkpoint(state_at(1))
    store.write_json(paths.request_json(NAME), {"attempt": "second"})
    for write in (
        records.save_rows,
        lambda: records.save_checkpoint(state_at(2)),
        lambda: records.save_snapshot(snapshot_at(10, 2), "key"),
        lambda: records.save_result({}),
    ):
        with pytest.raises(StoreError, match="given to another worker"):
            write()
    assert checkpoints(store, NAME) == ["step-00000001.ckpt"]
    assert not store.exists(paths.result(NAME))


# -- kill -9 ---------------------------------------------------------------------------------------


def test_a_death_between_any_two_writes_leaves_a_resumable_store(tmp_path: Path) -> None:
    """Every row up to the resumed state is there, and none changes afterwards."""
    lives, survived = 0, False
    while not survived:
        store = Store(tmp_path / f"store{lives}")
        try:
            train(MortalStore(store.root, lives), range(1, 11))
            survived = True
        except Killed:
            pass
        start, state = records_of(store).load_state()
        held = records_of(store).rows
        assert set(range(1, start + 1)) <= held.keys()
        assert (state is None) == (start == 0)
        train(store, range(1, 11), stamp=500)
        rows = records_of(store).rows
        assert sorted(rows) == list(range(1, 11))
        assert {step: rows[step] for step in held} == held
        lives += 1
    assert lives > 12

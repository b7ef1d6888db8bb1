"""What a trial reports: no more than the driver can bear, and what its process does besides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.faults import failure_report
from orchestrator.orders import check_seen
from orchestrator.polling import StopPoller
from orchestrator.rayprocesses import labels_that_avoid
from orchestrator.store import Store
from orchestrator.trial import (
    _decode_threads,
    _in_training_thread,
    _lockstep,
    _preempted,
    _reports,
    _Throttle,
    _training_thread,
)
from orchestrator.tuning import _resources
from tests.driving import Clock

# -- reports ---------------------------------------------------------------------------------------


def test_a_hundred_evaluations_a_second_become_one() -> None:
    keep = _Throttle()
    kept = [keep({"event": "evaluation", "step": step}) for step in range(100)]
    assert 1 <= sum(kept) < 100
    assert kept[0]


def test_the_driver_says_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock()
    monkeypatch.setattr("orchestrator.trial.time", SimpleNamespace(monotonic=now))
    keep = _Throttle(4.0)
    kept = []
    for now.now in range(10):
        kept += [now.now] if keep({"event": "progress", "step": 1}) else []
    assert kept == [0, 4, 8]


@pytest.mark.parametrize(
    "event", ["started", "snapshot", "checkpoint", "alive", "finished", "failed"]
)
def test_what_matters_is_never_throttled(event: str) -> None:
    keep = _Throttle()
    assert all(keep({"event": event}) for _ in range(10))


def test_workers_in_lockstep_decide_by_the_step_alone() -> None:
    reports = [{"event": "evaluation", "step": step} for step in (10, 49, 50, 100)]
    assert [_lockstep(report) for report in reports] == [False, False, True, True]
    assert not _lockstep({"event": "progress", "step": 50})
    assert _lockstep({"event": "finished", "step": 7})


def test_all_training_of_a_process_is_in_one_thread() -> None:
    def reports():
        yield {"event": "started", "thread": threading.get_ident()}
        yield {"event": "finished", "thread": threading.get_ident()}

    seen = {report["thread"] for _ in range(3) for report in _in_training_thread(reports)}
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_a_slow_reader_gets_what_matters_and_the_newest_of_the_rest() -> None:
    said = threading.Event()

    def reports():
        yield {"event": "progress", "step": 1}
        yield {"event": "evaluation", "step": 2}
        yield {"event": "snapshot", "step": 2}
        yield {"event": "progress", "step": 3}
        yield {"event": "progress", "step": 4}
        yield {"event": "finished", "step": 4}
        said.set()

    reader = _in_training_thread(reports, first_sign_s=60.0)
    first = next(reader)
    assert said.wait(60)
    _training_thread().submit(int).result()  # nothing more is on its way
    rest = [(one["event"], one["step"]) for one in reader]
    expected = [("snapshot", 2), ("finished", 4)]
    assert rest == expected[1 if first["event"] == "snapshot" else 0 :]


def test_an_exception_in_training_is_the_last_report() -> None:
    def reports():
        yield {"event": "started"}
        raise KeyError("lr")

    first, last = _in_training_thread(reports, first_sign_s=60.0)  # torch may have to be loaded
    assert first == {"event": "started"}
    assert (last["event"], last["message"]) == ("failed", "KeyError: 'lr'")


def test_what_fails_before_any_training_is_told_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of Tune's function it would be a process that died, three times over."""

    def denied(rel: str) -> bool:
        raise StoreError("cannot read the store: Permission denied", "give the node credentials")

    store = Store(tmp_path / "store")
    monkeypatch.setattr(store, "exists", denied)
    monkeypatch.setattr("orchestrator.trial.Store", lambda uri: store)
    monkeypatch.setattr("orchestrator.trial.this_process", lambda: {"node_id": "a" * 8})
    (report,) = _reports({"store": "s3://bucket", "workers": 1})  # type: ignore[typeddict-item]
    assert (report["event"], report["cause"]) == ("failed", "error")
    assert "Permission denied; remedy: give the node credentials" in report["message"]


def comes(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_a_stop_flag_that_appears_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    poller = StopPoller(store)
    try:
        assert not poller.is_set()
        store.write_bytes(paths.stop_flag(), b"stop\n")
        assert comes(poller.is_set)
        assert poller.draining is None
    finally:
        poller.close()


def test_a_node_that_is_about_to_leave_stops_its_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.write_bytes(paths.drain_flag("b" * 8), b"")
    here, elsewhere = StopPoller(store, ["a" * 8, "b" * 8, ""]), StopPoller(store, ["c" * 8])
    try:
        assert comes(here.is_set)
        assert here.draining == "b" * 8
        assert not elsewhere.is_set()
        store.write_bytes(paths.stop_flag(), b"stop\n")
        assert comes(elsewhere.is_set)
        assert elsewhere.draining is None
    finally:
        here.close()
        elsewhere.close()


def test_workers_that_follow_the_first_do_not_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    looks = threading.Event()
    monkeypatch.setattr(store, "list", lambda rel: looks.set() or [])
    second = StopPoller(store, looks=False)
    first = StopPoller(Store(tmp_path / "store"))
    try:
        Store(tmp_path / "store").write_bytes(paths.stop_flag(), b"stop\n")
        assert comes(first.is_set)
        assert not looks.is_set()
        assert not second.is_set()
    finally:
        first.close()
        second.close()


def test_what_stopped_for_its_node_was_preempted() -> None:
    stopped = {"event": "finished", "reason": "stopped", "step": 70}
    report = _preempted(stopped, "abc")
    assert (report["event"], report["cause"], report["step"]) == ("failed", "preempted", 70)
    assert report["message"] == "node abc takes no more runs; saved at step 70"
    assert report["spoilt"]


@pytest.mark.parametrize(
    "report",
    [
        {"event": "finished", "reason": "done", "step": 70},
        {"event": "finished", "reason": "exhausted", "step": 70, "missing": [40]},
        {"event": "checkpoint", "step": 70},
    ],
)
def test_what_ended_by_itself_was_not(report: dict[str, Any]) -> None:
    assert _preempted(report, "abc") == report


def test_a_trial_with_nothing_to_say_says_that_it_lives() -> None:
    """With the number of its process, which is what the driver needs to end a frozen one."""
    enough = threading.Event()

    def reports():
        enough.wait(60)
        yield {"event": "finished"}

    seen = []
    for report in _in_training_thread(reports, first_sign_s=0.01, sign_s=0.01):
        seen.append(report)
        if len(seen) == 3:
            enough.set()
    assert [report["event"] for report in seen[:3]] == ["alive"] * 3
    assert seen[-1] == {"event": "finished"}
    (process,) = seen[0]["processes"]
    assert process.keys() == {"node_id", "pid", "began", "host"}


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use_gpu", "share", "threads"), [(True, 1.0, 12), (True, 0.25, 3), (False, 1.0, 1)]
)
def test_runs_beside_each_other_share_the_cores_to_decode(
    monkeypatch: pytest.MonkeyPatch, use_gpu: bool, share: float, threads: int
) -> None:
    nodes = [
        {"NodeID": "other", "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"NodeID": "here", "Resources": {"CPU": 96.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(96)))
    assert _decode_threads({"use_gpu": use_gpu, "devices_per_worker": share}) == threads


def test_without_ray_nobody_is_beside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert _decode_threads({"use_gpu": True, "devices_per_worker": 1.0}) is None


def test_a_node_that_does_not_see_the_store_is_at_fault_and_no_run(tmp_path: Path) -> None:
    seen, other = Store(tmp_path / "store"), Store(tmp_path / "other")
    seen.write_json(paths.lease(), {})
    check_seen(seen, "0123")
    check_seen(other, "")  # nobody drives
    with pytest.raises(StoreError) as caught:
        check_seen(other, "0123")
    report = failure_report(caught.value)
    assert report["cause"] == "store"  # tried again, elsewhere perhaps
    assert f"does not see the store {other.uri}" in report["message"]
    assert "mount it on every node" in report["message"]
    assert "errno" not in report  # nothing of what the driver can write


# -- where it may be placed ------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "gpu"), [(1, False), (1, True), (2, True)])
def test_nodes_set_aside_are_not_asked_for(workers: int, gpu: bool) -> None:
    config = {"workers": workers, "use_gpu": gpu, "devices_per_worker": 0.5, "avoid": []}
    before, after = _resources(config), _resources(config | {"avoid": ["cd", "ab"]})
    assert before.bundles == after.bundles
    selector = [{"ray.io/node-id": "!in(ab,cd)"}]
    assert after._bound.arguments["bundle_label_selector"] == selector
    assert before != after  # so no process that is warm there is used again
    assert after == _resources(config | {"avoid": ["ab", "cd"]})
    assert labels_that_avoid([]) is None

"""One driver a store: refused while its holder lives, free as soon as it is gone."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from orchestrator import lease as lease_module
from orchestrator import paths
from orchestrator.boot import boot_id
from orchestrator.errors import StoreError, StoreInUseError
from orchestrator.lease import Holder, Lease, holder
from orchestrator.store import Store

BEAT_S = 0.02

HOLD = """
    import sys
    from orchestrator.errors import StoreInUseError
    from orchestrator.lease import Lease
    from orchestrator.store import Store
    try:
        with Lease(Store(sys.argv[1]), "targetsweep run a.yaml", heartbeat_s=0.02):
            print("held", flush=True)
            sys.stdin.readline()
    except StoreInUseError:
        print("refused", flush=True)
"""


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def other_driver(root: Path) -> Iterator[subprocess.Popen[str]]:
    with start(root) as process:
        try:
            assert answer(process) == "held"
            yield process
        finally:
            process.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def take(store: Store) -> Lease:
    return Lease(store, "targetsweep run b.yaml", heartbeat_s=BEAT_S)


def plant(store: Store, **changes: object) -> Holder:
    """A lease as somebody else would have left it."""
    with take(store):
        mine = holder(store)
    assert mine is not None
    planted = dataclasses.replace(mine, **changes)  # type: ignore[arg-type]
    store.write_json(paths.lease(), dataclasses.asdict(planted))
    return planted


def test_taken_and_given_back(store: Store) -> None:
    assert holder(store) is None
    with take(store) as lease:
        found = holder(store)
        assert found is not None
        assert (found.pid, found.command) == (os.getpid(), "targetsweep run b.yaml")
        assert found.id == lease.id
        assert not lease.lost.is_set()
    assert holder(store) is None
    with take(store):
        pass


def test_a_living_holder_is_named(store: Store) -> None:
    with other_driver(store.root) as process:
        with pytest.raises(StoreInUseError) as caught, take(store):
            pass
        found = holder(store)
        assert found is not None
        for fact in (f"{found.user}@{found.host}", str(process.pid), found.since, "run a.yaml"):
            assert fact in str(caught.value)
        assert "Ctrl-C" in caught.value.remedy


def test_a_killed_holder_frees_it_at_once(store: Store) -> None:
    with other_driver(store.root) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert store.exists(paths.lease())
    assert holder(store) is None
    with take(store):
        pass


def test_a_killed_holder_that_nobody_reaped_frees_it(store: Store) -> None:
    with other_driver(store.root) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        with take(store):
            pass


def test_two_contenders_for_a_stale_lease(store: Store) -> None:
    with other_driver(store.root) as process:
        process.kill()
    contenders = [start(store.root) for _ in range(2)]
    assert sorted(answer(process) for process in contenders) == ["held", "refused"]
    for process in contenders:
        process.communicate("\n")


def test_looking_and_taking_are_one_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a lease is written, nobody else can hold the lock."""
    write, was_locked = store.write_json, []

    def spy(rel: str, content: dict[str, Any]) -> None:
        with (store.root / ".lease.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                was_locked.append(False)
            except BlockingIOError:
                was_locked.append(True)
        write(rel, content)

    monkeypatch.setattr(store, "write_json", spy)
    with take(store):
        while len(was_locked) < 3:  # the first write and two heartbeats
            pass
    assert all(was_locked)


def test_a_reused_process_id_is_not_the_holder(store: Store) -> None:
    planted = plant(store, process_started=1.0)
    assert planted.pid == os.getpid()
    assert holder(store) is None
    with take(store):
        pass


@pytest.mark.parametrize("elsewhere", ["host", "container", "boot"])
def test_a_silent_holder_elsewhere_is_stale_after_three_beats(store: Store, elsewhere: str) -> None:
    boot = boot_id().split()[0]
    away = {
        "host": {"host": "other"},
        "container": {"boot_id": f"{boot} pid:[1]"},
        "boot": {"boot_id": "00000000-0000-0000-0000-000000000000 pid:[1]"},  # or a clone's
    }
    plant(store, **away[elsewhere])
    assert holder(store) is not None  # `status` cannot know yet
    with take(store):
        found = holder(store)
        assert found is not None
        assert found.pid == os.getpid()
        assert found.host != "other"


def test_a_beating_holder_elsewhere_is_refused(store: Store) -> None:
    away = plant(store, host="other")
    done = threading.Event()

    def beat() -> None:
        counter = 0
        while not done.wait(BEAT_S / 4):
            counter += 1
            content = dataclasses.asdict(dataclasses.replace(away, counter=counter))
            store.write_json(paths.lease(), content)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        slower = Lease(store, "b", heartbeat_s=1.0)
        with pytest.raises(StoreInUseError, match="@other"), slower:
            pass
    finally:
        done.set()
        thread.join()


def test_the_counter_is_renewed(store: Store) -> None:
    with take(store):
        first = holder(store)
        assert first is not None
        while (now := holder(store)) is not None and now.counter < first.counter + 3:
            pass
        assert now is not None
        assert now.is_same(first)


def test_a_lost_lease_is_noticed_and_left_alone(store: Store) -> None:
    with take(store) as lease:
        thief = dataclasses.replace(holder(store) or pytest.fail("no lease"), host="other", pid=1)
        store.write_json(paths.lease(), dataclasses.asdict(thief))
        assert lease.lost.wait(10)
        assert lease.id != thief.id
    assert thief.is_same(holder(store))


def test_a_lease_that_vanished_with_its_folder_is_lost(store: Store) -> None:
    """As when the mount is gone: nothing is written to what lies below."""
    with Lease(store, "targetsweep run b.yaml", heartbeat_s=60) as lease:
        store.root.rename(store.root.with_name("unmounted"))
        lease._renew()
        assert not lease.lost.is_set()
        lease._renew()
        assert lease.lost.is_set()
    assert not store.root.exists()


def test_a_lease_that_one_beat_does_not_see_is_not_lost(store: Store) -> None:
    """As where a file is replaced by a delete and a rename."""
    with Lease(store, "targetsweep run b.yaml", heartbeat_s=60) as lease:
        for beat in (1, 2, 3):
            lies = store.read_bytes(paths.lease())
            store.delete(paths.lease())
            lease._renew()
            store.write_bytes(paths.lease(), lies)
            lease._renew()
            found = holder(store)
            assert found is not None
            assert found.counter == beat
        assert not lease.lost.is_set()


def test_the_end_waits_for_no_hung_mount(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the beat that hangs, nor for the lock that it may have."""
    monkeypatch.setattr(lease_module, "_LAST_BEAT_S", 0.01)
    hanging, answers = threading.Event(), threading.Event()
    write = store.write_json

    def hang(rel: str, content: dict[str, Any]) -> None:
        if content["counter"]:
            hanging.set()
            assert answers.wait(60)
        write(rel, content)

    monkeypatch.setattr(store, "write_json", hang)
    try:
        with take(store):
            assert hanging.wait(60)
        assert not answers.is_set()
    finally:
        answers.set()


def test_works_on_an_object_store() -> None:
    bucket = fs.FileSystem.from_uri("mock://")[0]
    store, same = Store("store", filesystem=bucket), Store("store", filesystem=bucket)
    with take(store), pytest.raises(StoreInUseError), take(same):
        pass
    assert holder(same) is None


def test_a_file_that_is_no_lease(store: Store) -> None:
    store.write_json(paths.lease(), {"host": "x"})
    with pytest.raises(StoreError, match="not a lease"), take(store):
        pass


def test_a_damaged_lease_says_what_helps_and_does_not_stop_its_holder(store: Store) -> None:
    with take(store) as lease:
        store.write_bytes(paths.lease(), b'{"host": 3')
        with pytest.raises(StoreError, match="not a lease") as caught:
            holder(store)
        assert "delete the file" in caught.value.remedy
        while not is_sound(store):
            assert not lease.lost.is_set()
        store.write_bytes(paths.lease(), b'{"host": 3')
    assert not store.exists(paths.lease())


def is_sound(store: Store) -> bool:
    try:
        return holder(store) is not None
    except StoreError:
        return False


def test_an_unwritable_store() -> None:
    with pytest.raises(StoreError, match="cannot write"), take(Store("/proc/targetsweep")):
        pass

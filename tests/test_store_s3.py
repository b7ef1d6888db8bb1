"""The same promises on S3's protocol (moto, a process of its own), and what only S3 raises: servers
that go away, objects that are replaced, copies on this node, two drivers at once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from rich.console import Console

from dashboards.report import write_report
from orchestrator import paths
from orchestrator.errors import StoreError, StoreInUseError
from orchestrator.lease import Lease
from orchestrator.listener import Listener
from orchestrator.overrides import apply_overrides
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.storecommands import show_cache
from orchestrator.worker import execute
from tests import test_store
from tests.driving import (
    GRID,
    RUNTIME,
    TINY,
    Killed,
    MortalStore,
    digits_store,
    drive_here,
    tiny_plan,
)
from tests.servers import Server, s3_server
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL

REPORT = """\
report:
  - table: numbers
    metrics: {g: top1_g, h: top1_h}
    rows: [strategy, metric]
    columns: [teacher.accuracy]
"""
SWEEP = TINY.replace("steps: 20", "steps: 10") + GRID.replace("[20, 40]", "[20]") + REPORT
_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TARGETSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def uri(server: Server) -> str:
    """Of a store that no other test uses."""
    return server.uri.replace("/store?", f"/store-{next(_numbers)}?")


@pytest.fixture
def store(uri: str) -> Store:
    return Store(uri)


class TestEveryPromise(test_store.TestEveryStore):
    def test_a_file_where_a_folder_should_be(self, store: Store) -> None:
        """An object store knows no folders: both are there."""
        store.write_bytes("runs", b"x")
        store.write_bytes("runs/a", b"y")
        assert (store.read_bytes("runs"), store.read_bytes("runs/a")) == (b"x", b"y")

    def test_a_store_says_where_a_file_is(self, store: Store, server: Server) -> None:
        with pytest.raises(StoreError) as caught:
            store.read_bytes("no/such.bin")
        assert "/no/such.bin?endpoint_override=" in str(caught.value)

    def test_set_aside(self, store: Store) -> None:
        store.write_bytes("runs/x/result.json", b"broken")
        kept = store.set_aside("runs/x/result.json", "its seal does not fit")
        assert store.read_bytes(kept) == b"broken"
        assert not store.exists("runs/x/result.json")
        store.set_aside("runs/x/result.json", "somebody was faster")


class TestWriting:
    def test_a_small_file_is_one_request(self, store: Store, server: Server) -> None:
        store.write_bytes("counted/a.json", b"{}")
        assert server.requests("PUT", "counted/a.json") == 1
        assert server.requests("POST", "counted/a.json") == 0

    def test_a_source_that_cannot_be_read_to_its_end_leaves_nothing(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder opens on no system, a process's memory does and cannot be read from 0 on."""
        monkeypatch.setattr("orchestrator.store_remote._WHOLE_BYTES", -1)
        store.write_bytes("t/w", b"old")
        with pytest.raises(StoreError):
            store.upload(Path("/proc/self/mem"), "t/w")
        assert not store.exists("t/w")

    def test_an_object_that_is_replaced_while_it_is_read(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second look sees another version: what was read may be half old, half new."""
        store.write_bytes("r", b"old")
        backend = store._backend
        look, looks = backend._version, []

        def replaced(rel: str) -> str | None:
            if not looks:
                store.write_bytes("r", b"newer and longer")
            looks.append(rel)
            return look(rel)

        monkeypatch.setattr(backend, "_version", replaced)
        assert store.read_bytes("r") == b"newer and longer"
        assert len(looks) == 2


FETCH = """
    import sys
    from orchestrator.store import Store
    print(sum(path.stat().st_size for path in Store(sys.argv[1]).local("datasets/d").iterdir()
              if not path.name.startswith(".")))
"""


class TestCopies:
    def test_processes_of_a_node_share_one_download(self, store: Store, server: Server) -> None:
        for name in ("train.npy", "labels.npy", "meta.json"):
            store.write_bytes(f"datasets/d/{name}", name.encode() * 100_000)
        command = [sys.executable, "-c", textwrap.dedent(FETCH), store.uri]
        asking = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        sizes = {process.communicate()[0] for process in asking}
        assert sizes == {f"{len('train.npylabels.npymeta.json') * 100_000}\n"}
        key = store.uri.partition("?")[0].removeprefix("s3:/")
        assert server.requests("GET", f"{key}/datasets/d/train.npy") == 1
        store.local("datasets/d")
        assert server.requests("GET", f"{key}/datasets/d/train.npy") == 1

    def test_a_new_version_of_the_same_size_in_the_same_second(self, store: Store) -> None:
        for content in (b"one", b"two", b"six"):
            store.write_bytes("targets/t.arrow", content)
            assert store.local("targets/t.arrow").read_bytes() == content
            assert (store.local("targets") / "t.arrow").read_bytes() == content

    @pytest.mark.parametrize("damage", [b"on", b"onf", b""])
    def test_a_damaged_copy_is_fetched_again(self, store: Store, damage: bytes) -> None:
        store.write_bytes("targets/t.arrow", b"one")
        store.local("targets/t.arrow").write_bytes(damage)
        assert store.local("targets/t.arrow").read_bytes() == b"one"

    def test_a_copy_with_flipped_bits_and_its_old_time(self, store: Store, tmp_path: Path) -> None:
        """As a disk does it: nothing but the bytes tells. A process looks at them once."""
        store.write_bytes("datasets/d/x", b"one")
        copy = store.local("datasets/d/x")
        note = copy.with_name(".x.copy.json")
        copy.write_bytes(b"onf")
        found = json.loads(note.read_text())
        status = copy.stat()
        found["stamp"] = [status.st_ino, status.st_size, status.st_mtime_ns]
        note.write_text(json.dumps(found))
        assert store.local("datasets/d/x").read_bytes() == b"one"

    def test_a_lost_note_costs_a_download(self, store: Store) -> None:
        store.write_bytes("targets/t.arrow", b"one")
        store.local("targets/t.arrow").with_name(".t.arrow.copy.json").write_bytes(b"{")
        assert store.local("targets/t.arrow").read_bytes() == b"one"

    def test_copies_are_counted_and_cleared(self, store: Store) -> None:
        store.write_bytes("targets/t.arrow", b"one")
        copy, out = store.local("targets/t.arrow"), io.StringIO()
        for clear in (False, True, False):
            show_cache(Console(file=out, width=200), store, clear=clear)
        said = [line.partition(",")[0] for line in out.getvalue().splitlines()]
        assert said == ["1 copies", "1 copies", "0 copies"]
        assert not copy.exists()
        assert store.local("targets/t.arrow").read_bytes() == b"one"

    def test_what_is_gone_from_a_folder_goes_from_its_copy(self, store: Store) -> None:
        for name in ("report/a.md", "report/tables/b.md"):
            store.write_bytes(f"sweeps/s/{name}", b"x")
        folder = store.local("sweeps/s/report")
        store.delete("sweeps/s/report/tables/b.md")
        assert store.local("sweeps/s/report") == folder
        assert (folder / "a.md").exists()
        assert not (folder / "tables/b.md").exists()


class TestServersThatGoAway:
    """Each has a server of its own. Time-outs of pyarrow's defaults would be 99 s and more."""

    @pytest.mark.timeout(60)
    def test_stopped(self) -> None:
        with s3_server() as server:
            store = Store(server.uri)
            store.write_bytes("f", b"x")
            server.stop()
            for act in (lambda: store.read_bytes("f"), lambda: store.write_bytes("f", b"y")):
                with pytest.raises(StoreError, match="connect") as caught:
                    act()
                assert "reachable" in caught.value.remedy

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_frozen_and_back(self) -> None:
        with s3_server() as server:
            store = Store(server.uri)
            store.write_bytes("f", b"x")
            server.pause()
            for act in (lambda: store.read_bytes("f"), lambda: store.write_bytes("f", b"y")):
                with pytest.raises(StoreError, match="Timeout"):
                    act()
            server.resume()
            store.write_bytes("g", b"z")
            assert (store.read_bytes("f") in (b"x", b"y"), store.read_bytes("g")) == (True, b"z")

    def test_no_such_bucket_and_no_permission_have_remedies(self, server: Server) -> None:
        store = Store(server.uri.replace("bucket", "nobucket"))
        with pytest.raises(StoreError, match=r"(?i)bucket") as caught:
            store.write_bytes("f", b"x")
        assert "credentials" in caught.value.remedy

    @pytest.mark.parametrize("option", ["nonsense=1", "anonymous=perhaps"])
    def test_unknown_options_are_named(self, server: Server, option: str) -> None:
        with pytest.raises(StoreError, match=option.partition("=")[0]):
            Store(f"{server.uri}&{option}")


TAKE = """
    import sys
    from orchestrator.errors import StoreInUseError
    from orchestrator.lease import Lease
    from orchestrator.store import Store
    store = Store(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with Lease(store, "targetsweep run a.yaml", heartbeat_s=2.0):
            print("held", flush=True)
            sys.stdin.readline()
    except StoreInUseError:
        print("refused", flush=True)
"""


class TestLease:
    def test_of_several_that_take_it_at_once_one_drives(self, store: Store) -> None:
        command = [sys.executable, "-c", textwrap.dedent(TAKE), store.uri]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        takers = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
        for taker in takers:
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            taker.stdin.write("go\n")
            taker.stdin.flush()
        answers = sorted(taker.stdout.readline().strip() for taker in takers)
        with pytest.raises(StoreInUseError, match=r"run a\.yaml"), Lease(store, "second"):
            pass
        for taker in takers:
            taker.communicate("\n")
        assert answers == ["held", "refused", "refused"]
        assert not store.exists(paths.lease())

    def test_a_holder_that_was_overwritten_hears_of_it(self, store: Store) -> None:
        with Lease(store, "first", heartbeat_s=0.1) as lease:
            other = store.read_json(paths.lease())
            assert other is not None
            store.write_json(paths.lease(), {**other, "command": "second"})
            assert lease.lost.wait(20)
        assert store.exists(paths.lease())  # the other's, not ours to delete


# -- a sweep ------------------------------------------------------------------------------------


def write_document(folder: Path, store: Store) -> None:
    (sweep,) = load_sweeps([write(folder, SWEEP)], OFFICIAL)
    sweep = apply_overrides(sweep, [], OFFICIAL)
    document = plan_document(sweep, make_plan([sweep], OFFICIAL))
    store.write_json(paths.plan_json("tiny"), document, in_order=True)


def tables(store: Store) -> dict[str, bytes]:
    write_report(store.uri, "tiny")
    folder = f"{paths.report_dir('tiny')}/tables"
    return {name: store.read_bytes(f"{folder}/{name}") for name in store.list(folder)}


def bring_digits(local: Store, remote: Store) -> None:
    for path in sorted((local.root / "datasets/digits").iterdir()):
        remote.upload(path, f"datasets/digits/{path.name}")


def drive_until_done(folder: Path, uri: str, lives: list[int]) -> int:
    """Kills the driver (and with it the trial) after so many changes of the store, and runs again.
    How often it was killed."""
    kills = 0
    for left in [*lives, 10_000]:
        store = MortalStore(uri, left)
        try:
            drive_here(tiny_plan(folder, store, text=SWEEP), store)
            return kills
        except Killed:
            kills += 1
    return kills


@pytest.mark.slow
def test_a_sweep_killed_and_resumed_gives_the_tables_of_a_local_one(
    tmp_path: Path, uri: str, server: Server
) -> None:
    local = digits_store(tmp_path / "local")
    drive_here(tiny_plan(tmp_path, local, text=SWEEP), local)
    write_document(tmp_path, local)
    expected = tables(local)
    assert expected

    remote = Store(uri)
    bring_digits(local, remote)
    assert drive_until_done(tmp_path, uri, [3, 12, 20]) == 3
    write_document(tmp_path, remote)
    assert tables(remote) == expected
    assert not tiny_plan(tmp_path, remote, text=SWEEP).left
    key = uri.partition("?")[0].removeprefix("s3:/")
    assert server.requests("GET", f"{key}/datasets/digits/train-images.npy") == 1
    for name in remote.list(paths.targets_dir()):
        assert server.requests("GET", f"{key}/targets/{name}") == 1


def test_of_two_attempts_the_replaced_one_writes_nothing(tmp_path: Path, uri: str) -> None:
    """Two drivers that both hold an advisory lease hand out one run: the later request wins."""
    remote = Store(uri)
    bring_digits(digits_store(tmp_path / "local"), remote)
    plan = tiny_plan(tmp_path, remote, text=SWEEP)

    class Second(Listener):
        taken = ""

        def started(self, unit: object, first_step: int) -> None:
            name = str(getattr(unit, "name", ""))
            if not self.taken:
                self.taken = name
                request = remote.read_json(paths.request_json(name)) or {}
                remote.write_json(paths.request_json(name), {**request, "attempt": "another's"})

    second = Second()
    only = replace(plan, units=plan.units[:1])
    conductor = drive_here(only, remote, second, runtime=RUNTIME, run=execute)
    assert second.taken
    assert conductor.finished
    assert not remote.exists(paths.result(second.taken))

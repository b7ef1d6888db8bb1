"""What every store promises, over folders and remote file systems; then what only one kind does."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from pyarrow import fs

from orchestrator import paths, store_local
from orchestrator.errors import DamagedFileError, StoreError
from orchestrator.store import Store
from orchestrator.store_local import temporary_name
from trainers.spec import Dataset, TargetsSpec, TeacherRef


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TARGETSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["local", "file-uri", "remote", "bucket-path"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "a store")
    if request.param == "file-uri":
        return Store((tmp_path / "a store").as_uri())
    if request.param == "remote":
        return Store("mock://bucket/with/prefix")
    return Store("bucket/prefix", filesystem=fs.SubTreeFileSystem("", _mock()))


def _mock() -> Any:
    return fs.FileSystem.from_uri("mock://")[0]


class TestEveryStore:
    def test_bytes_come_back(self, store: Store) -> None:
        store.write_bytes("a/b/c.bin", b"\0one")
        assert store.read_bytes("a/b/c.bin") == b"\0one"
        store.write_bytes("a/b/c.bin", b"")
        assert store.read_bytes("a/b/c.bin") == b""

    def test_a_streamed_file_comes_back_as_it_was_left(self, store: Store) -> None:
        def fill(stream: BinaryIO) -> None:
            stream.write(b"....one, two")
            stream.seek(0)
            stream.write(b"head")

        store.write_stream("a/b.bin", fill)
        assert store.read_bytes("a/b.bin") == b"headone, two"

    def test_a_stream_that_fails_changes_nothing(self, store: Store) -> None:
        store.write_bytes("a/b.bin", b"old")

        def fill(stream: BinaryIO) -> None:
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(StoreError, match="cannot write") as caught:
            store.write_stream("a/b.bin", fill)
        assert caught.value.errno == errno.ENOSPC
        assert store.read_bytes("a/b.bin") == b"old"
        assert store.list("a") == ["b.bin"]

    def test_json_is_deterministic(self, store: Store) -> None:
        store.write_json("x.json", {"b": [1, 2.5], "a": {"ü": None}})
        first = store.read_bytes("x.json")
        store.write_json("x.json", {"a": {"ü": None}, "b": [1, 2.5]})
        assert store.read_bytes("x.json") == first
        assert first.endswith(b"}\n")
        assert store.read_json("x.json") == {"a": {"ü": None}, "b": [1, 2.5]}

    def test_missing_json_is_none(self, store: Store) -> None:
        assert store.read_json("no/such.json") is None

    @pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[1]", b""])
    def test_what_is_not_an_object_is_named(self, store: Store, data: bytes) -> None:
        store.write_bytes("runs/x/run.json", data)
        with pytest.raises(DamagedFileError, match=r"runs/x/run\.json") as caught:
            store.read_json("runs/x/run.json")
        assert caught.value.remedy
        assert caught.value.damaged == ["runs/x/run.json"]

    def test_json_that_was_changed_is_damaged(self, store: Store) -> None:
        store.write_json("x.json", {"step": 300, "digest": "ab"})
        sealed = store.read_bytes("x.json")
        for changed in (sealed.replace(b"300", b"301"), b'{"step": 300}', sealed[:-9]):
            store.write_bytes("x.json", changed)
            with pytest.raises(DamagedFileError) as caught:
                store.read_json("x.json")
            assert caught.value.reason
        store.write_bytes("x.json", sealed.replace(b"\n", b" "))  # the values are the same
        assert store.read_json("x.json") == {"step": 300, "digest": "ab"}

    def test_json_in_the_order_it_comes_in(self, store: Store) -> None:
        store.write_json("plan.json", {"b": {"z": 1, "a": 2}, "a": 3}, in_order=True)
        assert json.dumps(store.read_json("plan.json")) == '{"b": {"z": 1, "a": 2}, "a": 3}'

    def test_set_aside_moves_and_never_overwrites(self, store: Store) -> None:
        kept = []
        for data in (b"one", b"two", b"three"):
            store.write_bytes("runs/x/result.json", data)
            kept.append(store.set_aside("runs/x/result.json", "its checksum does not fit"))
            assert not store.exists("runs/x/result.json")
        assert [store.read_bytes(rel) for rel in kept] == [b"one", b"two", b"three"]
        name = r"damaged/\d{8}T\d{6}Z(\.\d)?-runs~x~result\.json"
        assert all(re.fullmatch(name, rel) for rel in kept)
        assert len(store.list(paths.damaged_dir())) == 3
        store.set_aside("runs/x/result.json", "another process was faster")
        assert len(store.list(paths.damaged_dir())) == 3
        with pytest.raises(StoreError, match="inside the store"):
            store.set_aside("../x", "no")

    def test_missing_bytes_are_an_error_with_the_name(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"no/such\.bin"):
            store.read_bytes("no/such.bin")

    def test_list_is_sorted_and_empty_when_missing(self, store: Store) -> None:
        assert store.list() == []
        assert store.list("runs") == []
        for name in ("b/1", "a/1", "c.json"):
            store.write_bytes(f"runs/{name}", b"x")
        assert store.list("runs") == ["a", "b", "c.json"]
        assert store.list() == ["runs"]

    def test_stamps_change_with_the_content(self, store: Store) -> None:
        store.write_bytes("runs/f", b"1")
        before = store.stamps("runs")
        assert before == store.stamps("runs")
        store.write_bytes("runs/f", b"22")
        assert store.stamps("runs") != before
        assert store.stamps("runs")["f"].num_bytes == 2

    def test_exists_and_modified(self, store: Store) -> None:
        assert not store.exists("a/b")
        assert store.modified("a/b") is None
        store.write_bytes("a/b", b"1")
        assert store.exists("a/b")
        assert store.exists("a")
        assert (store.modified("a/b") or 0) > 1e9

    def test_delete_is_idempotent(self, store: Store) -> None:
        store.write_bytes("a/b", b"1")
        store.delete("a/b")
        store.delete("a/b")
        assert not store.exists("a/b")

    def test_delete_tree_takes_everything_and_nothing_else(self, store: Store) -> None:
        for name in ("a/b/1", "a/b/c/2", "a/d"):
            store.write_bytes(name, b"x")
        store.delete_tree("a/b")
        store.delete_tree("a/b")
        assert store.list("a") == ["d"]

    def test_local_gives_a_file_and_sees_a_new_version(self, store: Store) -> None:
        store.write_bytes("t/x.arrow", b"one")
        assert store.local("t/x.arrow").read_bytes() == b"one"
        store.write_bytes("t/x.arrow", b"three")
        assert store.local("t/x.arrow").read_bytes() == b"three"
        assert store.local("t/x.arrow").name == "x.arrow"

    def test_local_gives_a_folder(self, store: Store) -> None:
        store.write_bytes("datasets/digits/a.npy", b"1")
        store.write_bytes("datasets/digits/sub/b.npy", b"2")
        folder = store.local("datasets/digits")
        assert (folder / "a.npy").read_bytes() == b"1"
        assert (folder / "sub/b.npy").read_bytes() == b"2"

    def test_upload(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "made.safetensors"
        source.write_bytes(b"w" * 3_000_000)
        store.upload(source, "runs/x/w.safetensors")
        assert store.read_bytes("runs/x/w.safetensors") == source.read_bytes()
        store.upload(store.local("runs/x/w.safetensors"), "runs/x/w.safetensors")
        assert store.read_bytes("runs/x/w.safetensors") == source.read_bytes()

    def test_upload_of_a_missing_file(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(StoreError):
            store.upload(tmp_path / "absent", "x")
        assert not store.exists("x")

    @pytest.mark.parametrize(
        "rel", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\\b", "a\0b", "a/"]
    )
    def test_no_name_leaves_the_store(self, store: Store, rel: str) -> None:
        for act in (
            store.read_bytes,
            store.read_json,
            store.local,
            store.delete_tree,
            store.exists,
        ):
            with pytest.raises(StoreError, match="inside the store"):
                act(rel)
        with pytest.raises(StoreError, match="inside the store"):
            store.write_bytes(rel, b"")

    def test_a_file_where_a_folder_should_be(self, store: Store) -> None:
        store.write_bytes("runs", b"x")
        with pytest.raises(StoreError) as caught:
            store.write_bytes("runs/a", b"y")
        assert caught.value.remedy
        assert store.read_bytes("runs") == b"x"

    def test_writers_at_once_leave_one_whole_file(self, store: Store) -> None:
        contents = [bytes([65 + index]) * 50_000 for index in range(8)]
        threads = [
            threading.Thread(target=store.write_bytes, args=("one", data)) for data in contents
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.read_bytes("one") in contents
        assert store.list() == ["one"]
        assert store.sweep_temporaries() == []


class TestLocal:
    def test_uri_opens_the_same_store(self, tmp_path: Path) -> None:
        store = Store((tmp_path / "ä b").as_uri())
        assert store.is_local
        assert store.root == tmp_path / "ä b"
        assert Store(store.uri).root == store.root

    @pytest.mark.parametrize("uri", ["file://relative/x", "file:relative", "nonsense://x"])
    def test_bad_uris_are_refused(self, uri: str) -> None:
        if uri == "file:relative":
            assert Store(uri).is_local  # a path with a colon, as the shell would see it
            return
        with pytest.raises(StoreError):
            Store(uri)

    def test_killed_writer_leaves_the_old_file_and_a_sweepable_temporary(
        self, tmp_path: Path
    ) -> None:
        store = Store(tmp_path)
        store.write_bytes("runs/f", b"old")
        code = """
            import os, signal, sys
            from pathlib import Path
            from orchestrator.store_local import replace_file
            def fill(stream):
                stream.write(b"half"); stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            replace_file(Path(sys.argv[1]), fill)
        """
        target = str(tmp_path / "runs/f")
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), target], check=False)
        assert done.returncode == -signal.SIGKILL
        assert store.read_bytes("runs/f") == b"old"
        assert store.list("runs") == ["f"]
        assert len(store.sweep_temporaries()) == 1
        assert os.listdir(tmp_path / "runs") == ["f"]

    def test_a_living_writer_is_not_swept(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        mine = tmp_path / temporary_name()
        mine.write_bytes(b"being written")
        (tmp_path / ".hidden").touch()
        assert store.sweep_temporaries() == []
        os.utime(mine, (0, 0))
        assert store.sweep_temporaries() == [mine.name]

    def test_a_writer_of_another_container_is_not_swept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has this host's name, and its process ids mean nothing here."""
        code = "from orchestrator.store_local import temporary_name; print(temporary_name())"
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(store_local, "boot_id", lambda: "another pid:[1]")
            elsewhere.setattr(os, "getpid", lambda: 2**22 + 1)  # no such process
            theirs = tmp_path / temporary_name()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        ended = tmp_path / done.stdout.decode().strip()
        for path in (theirs, ended):
            path.write_bytes(b"being written")
        assert Store(tmp_path).sweep_temporaries() == [ended.name]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_without_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="ermission") as caught:
            Store(tmp_path).write_bytes("x", b"")
        assert "permissions" in caught.value.remedy

    def test_another_disk_behind_a_link(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(tmp_path)
        store.write_bytes("runs/a/result.json", b"{}")
        store.write_bytes("datasets/mine/x.npy", b"1")

        def elsewhere(source: Path, target: Path) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "rename", elsewhere)
        for rel, inner in (("runs/a/result.json", ""), ("datasets/mine", "/x.npy")):
            kept = store.set_aside(rel, "damaged")
            assert store.exists(kept + inner)
            assert not store.exists(rel)

    def test_unwritable_place(self) -> None:
        with pytest.raises(StoreError, match="cannot write") as caught:
            Store("/proc/targetsweep").write_bytes("x", b"")
        assert caught.value.remedy

    def test_full_disk_changes_nothing(self, tmp_path: Path) -> None:
        """RLIMIT_FSIZE fails a write in the middle like a full disk does, without needing root."""
        store = Store(tmp_path)
        store.write_bytes("f", b"old")
        code = """
            import resource, signal, sys
            from orchestrator.errors import StoreError
            from orchestrator.store import Store
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                Store(sys.argv[1]).write_bytes("f", b"x" * 1_000_000)
            except StoreError as error:
                print(error)
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "free space" in done.stdout
        assert store.read_bytes("f") == b"old"
        assert os.listdir(tmp_path) == ["f"]

    def test_full_tmpfs_changes_nothing(self, tmp_path: Path) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("mounting is not permitted")
        try:
            store = Store(tmp_path)
            store.write_bytes("f", b"old")
            with pytest.raises(StoreError, match="space"):
                store.write_bytes("f", b"x" * 2_000_000)
            assert store.read_bytes("f") == b"old"
            assert os.listdir(tmp_path) == ["f"]
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)


class TestRemote:
    def test_has_no_root(self) -> None:
        store = Store("mock://bucket/x")
        assert not store.is_local
        with pytest.raises(StoreError, match="not a folder"):
            _ = store.root

    def test_local_fetches_once_a_version(self, cache: Path) -> None:
        store = Store("mock://bucket/x")
        store.write_bytes("t/a", b"1")
        first = store.local("t/a")
        inode = first.stat().st_ino
        assert store.local("t/a").stat().st_ino == inode
        assert first.is_relative_to(cache)
        store.write_bytes("t/a", b"22")  # mock:// keeps the time of an overwritten file
        assert store.local("t/a").stat().st_ino != inode

    def test_local_of_a_missing_file(self) -> None:
        with pytest.raises(StoreError, match="t/a"):
            Store("mock://bucket/x").local("t/a")

    def test_local_where_a_home_knows_no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unlocked(stream: BinaryIO, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", unlocked)
        store = Store("mock://bucket/x")
        store.write_bytes("t/a", b"1")
        assert store.local("t/a").read_bytes() == b"1"

    def test_local_of_a_folder_that_somebody_writes_in(self) -> None:
        store = Store("mock://bucket/x")
        store.write_bytes("t/a", b"1")
        store.write_bytes(f"t/{temporary_name()}", b"half")
        assert sorted(os.listdir(store.local("t"))) == [".a.copy.json", ".a.lock", "a"]

    def test_a_folder_is_set_aside_with_all_that_is_in_it(self) -> None:
        store = Store("mock://bucket/x")
        for name in ("meta.json", "shards/0.bin"):
            store.write_bytes(f"datasets/mine/{name}", name.encode())
        kept = store.set_aside("datasets/mine", "a flipped byte")
        assert not store.exists("datasets/mine")
        assert store.read_bytes(f"{kept}/shards/0.bin") == b"shards/0.bin"
        assert store.read_bytes(f"{kept}/meta.json") == b"meta.json"

    def test_where_folders_are_real_a_cut_off_write_leaves_the_old_file(
        self, tmp_path: Path
    ) -> None:
        """As on HDFS, which shows a file while it grows."""
        files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        store = Store("bucket", filesystem=files)
        store.write_bytes("runs/a.json", b"old")
        killing = textwrap.dedent("""
            import os, sys
            from pyarrow import fs
            from orchestrator.store import Store
            files = fs.SubTreeFileSystem(sys.argv[1], fs.LocalFileSystem())
            with Store("bucket", filesystem=files)._backend._output("runs/a.json") as stream:
                stream.write(b"new")
                stream.flush()
                os._exit(9)
        """)
        done = subprocess.run([sys.executable, "-c", killing, str(tmp_path)], check=False)
        assert done.returncode == 9
        assert store.read_bytes("runs/a.json") == b"old"
        assert store.list("runs") == ["a.json"]
        (left,) = store.sweep_temporaries()
        assert left.startswith("runs/.ts-")
        assert not store.sweep_temporaries()

    def test_a_rename_that_replaces_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store("mock://bucket/x")
        real = store._backend._fs  # type: ignore[attr-defined]

        class LikeHdfs:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def move(self, source: str, target: str) -> None:
                is_there = real.get_file_info(target).type != fs.FileType.NotFound
                if is_there or real.open_input_file(source).read() == b"stays":
                    raise OSError("rename failed")
                real.move(source, target)

        monkeypatch.setattr(store._backend, "_fs", LikeHdfs())
        for data in (b"old", b"new"):
            store.write_bytes("runs/a", data)
            assert store.read_bytes("runs/a") == data
        with pytest.raises(StoreError, match="rename failed"):
            store.write_bytes("runs/a", b"stays")
        assert store.read_bytes("runs/a") == b"new"
        assert list(store._backend.stamps("runs")) == ["a"]

    def test_a_failed_write_leaves_no_half_object(self, tmp_path: Path) -> None:
        store = Store("mock://bucket/x")
        with pytest.raises(StoreError):
            store.upload(tmp_path, "t/a")  # a folder cannot be read
        assert not store.exists("t/a")


class TestPaths:
    def test_the_layout_of_architecture_md(self) -> None:
        name = paths.run_name("student", "0123456789abcdef" * 4)
        assert paths.run_json(name) == "runs/student-0123456789abcdef/run.json"
        assert paths.metrics(name).endswith("/metrics.parquet")
        assert paths.snapshot_weights(name, 30.0).endswith("/snapshots/acc-30.safetensors")
        assert paths.snapshot_json(name, 12.5).endswith("/snapshots/acc-12.5.json")
        assert paths.checkpoint(name, "step-00000300").endswith("/checkpoint/step-00000300.ckpt")
        spec = TargetsSpec(
            dataset=Dataset(name="digits", fingerprint="f" * 64),
            teacher=TeacherRef(key="cd" * 32, accuracy=30.0),
            temperature=2.0,
        )
        targets = paths.targets_file(spec, "ab" * 32)
        assert targets == "targets/abababababababab-cdcdcdcd-train-plain-T2-f32.arrow"
        other = dataclasses.replace(spec, teacher=TeacherRef(key="ef" * 32, accuracy=30.0))
        assert paths.targets_file(other, "ab" * 32) != targets  # the same weights, not trained yet
        assert paths.plan_json("demo") == "sweeps/demo/plan.json"
        assert paths.report_dir("demo") == "sweeps/demo/report"
        assert (paths.lease(), paths.stop_flag()) == ("lease.json", "control/stop")

    @pytest.mark.parametrize(
        "name", ["", "..", "a/b", "/a", ".hidden", "a..b", "a\\b", "a\nb", "-\0"]
    )
    def test_names_cannot_leave_or_hide(self, name: str) -> None:
        for place in (paths.plan_json, paths.run_json, paths.dataset_dir):
            with pytest.raises(StoreError, match="cannot name"):
                place(name)

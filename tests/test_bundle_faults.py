"""Bundles where something goes wrong: nothing that a store or a folder had is lost for it."""

from __future__ import annotations

import errno
import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from rich.console import Console

from dashboards.seals import seal_parquet
from orchestrator import bundlefile, paths
from orchestrator.bundleexport import export_bundle
from orchestrator.bundlefile import is_zip, read_pack, write_pack, zip_place
from orchestrator.bundleimport import import_bundles
from orchestrator.bundleweights import MAX_CHECKPOINT_MB, Limits
from orchestrator.bundling import BundleExport, check_place, export_so_far
from orchestrator.errors import DamagedFileError, StoreError, UserError
from orchestrator.metricsfile import read_metrics
from orchestrator.runrecord import read_record
from orchestrator.store import Store
from tests.bundle_stores import (
    NAME,
    bent,
    bring,
    copy_of,
    names,
    reference,
    reference_bundle,
    shortened,
    tree,
)

# -- a store whose files cannot be read, or are damaged --------------------------------------------


@pytest.mark.parametrize("file", [paths.run_json, paths.metrics, paths.result])
def test_what_cannot_be_read_now_is_not_replaced_by_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Callable[[str], str]
) -> None:
    store = copy_of(reference(), tmp_path / "ours")
    before = tree(store)
    shorter = bent(reference_bundle(), tmp_path / "shorter", lambda one: shortened(one, 10))
    name = names(store, "student")[0]
    real = Store.read_bytes, Store.read_json

    def stuttering(which: int) -> Callable[[Store, str], Any]:
        def read(self: Store, rel: str) -> Any:
            if rel == file(name):
                error = StoreError(f"cannot read {rel}: Connection timed out")
                error.errno = errno.ETIMEDOUT
                raise error
            return real[which](self, rel)

        return read

    with monkeypatch.context() as patched:
        patched.setattr(Store, "read_bytes", stuttering(0))
        patched.setattr(Store, "read_json", stuttering(1))
        with pytest.raises(StoreError, match="timed out"):
            import_bundles(store, [shorter])
        with pytest.raises(StoreError, match="timed out"):
            export_bundle(store, str(tmp_path / "out"))
    assert tree(store) == before
    assert bring(store, shorter).runs == {"same": 8}


def test_damage_is_set_aside_before_anything_takes_its_place(tmp_path: Path) -> None:
    store = copy_of(reference(), tmp_path / "ours")
    shorter = bent(reference_bundle(), tmp_path / "shorter", lambda one: shortened(one, 10))
    name = names(store, "student")[0]
    data = store.read_bytes(paths.metrics(name))
    store.write_bytes(paths.metrics(name), data[:-1])
    done = bring(store, shorter)
    kept, result = store.list(paths.damaged_dir())
    assert store.read_bytes(f"{paths.damaged_dir()}/{kept}") == data[:-1]
    assert result.endswith("~result.json")
    assert any(paths.metrics(name) in note and kept in note for note in done.notes)
    record = read_record(store, name)
    assert record is not None
    assert record.result is not None
    assert record.result["horizon"] == 10  # no more than its rows say
    assert store.list(paths.checkpoint_dir(name)) == []


@pytest.mark.parametrize(
    ("harm", "num_kept"),
    [
        (lambda store, rel: store.write_bytes(rel, b"{"), 1),
        (lambda store, rel: store.delete(rel), 0),  # as `store check --repair` leaves it
        (lambda store, rel: store.write_json(rel, {"key": "0"}), 0),
    ],
)
def test_a_description_that_says_nothing_costs_no_rows(
    tmp_path: Path, harm: Callable[[Store, str], None], num_kept: int
) -> None:
    store = copy_of(reference(), tmp_path / "ours")
    shorter = bent(reference_bundle(), tmp_path / "shorter", lambda one: shortened(one, 10))
    name = names(store, "student")[0]
    whole = read_record(store, name)
    harm(store, paths.run_json(name))
    done = bring(store, shorter)
    assert done.runs == {"same": 8}
    assert read_record(store, name) == whole
    assert len(store.list(paths.damaged_dir())) == num_kept


def test_what_rests_on_rows_that_are_gone_goes_before_others_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the run would go on from a state past rows that nobody has any more."""
    store = copy_of(reference(), tmp_path / "ours")
    shorter = bent(reference_bundle(), tmp_path / "shorter", lambda one: shortened(one, 10))
    name = names(store, "student")[0]
    store.delete(paths.metrics(name))
    real = Store.write_bytes

    def killed(self: Store, rel: str, data: bytes) -> None:
        real(self, rel, data)
        if rel == paths.metrics(name):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            import_bundles(store, [shorter])
    assert store.list(paths.checkpoint_dir(name)) == []
    assert not store.exists(paths.result(name))
    assert bring(store, shorter).runs == {"grown": 1, "same": 7}


def test_a_state_before_the_first_row_stays(tmp_path: Path) -> None:
    """Its file of rows is there, and empty: none is gone."""
    store = copy_of(reference(), tmp_path / "ours")
    name = names(store, "student")[0]
    table = read_metrics(store, name)
    assert table is not None
    buffer = io.BytesIO()
    pq.write_table(table.slice(0, 0), buffer)
    store.write_bytes(paths.metrics(name), seal_parquet(buffer.getvalue()))
    store.delete(paths.result(name))
    states = store.list(paths.checkpoint_dir(name))
    assert states
    assert bring(store, reference_bundle()).runs == {"grown": 1, "same": 7}
    assert store.list(paths.checkpoint_dir(name)) == states


def test_a_damaged_plan_costs_its_own_sweep_alone(tmp_path: Path) -> None:
    store = copy_of(reference(), tmp_path / "ours")
    store.write_bytes(paths.plan_json("broken"), b"garbage")
    done = export_bundle(store, str(tmp_path / "out"))
    assert (done.sweeps, done.damaged) == ((NAME,), ("broken",))
    with pytest.raises(DamagedFileError):
        export_bundle(store, str(tmp_path / "asked"), ["broken"])


def test_a_damaged_list_of_bundles_stops_no_import(tmp_path: Path) -> None:
    store = Store(tmp_path / "ours")
    shorter = bent(reference_bundle(), tmp_path / "shorter", lambda one: shortened(one, 10))
    bring(store, shorter)
    name = names(store, "student")[0]
    store.write_bytes(paths.imported_json(name), b"{")
    bring(store, reference_bundle())
    found = store.read_json(paths.imported_json(name)) or {}
    assert [one["brought"] for one in found["bundles"]] == ["grown"]
    assert len(store.list(paths.damaged_dir())) == 1


# -- runs at work ----------------------------------------------------------------------------------


def test_a_complete_run_that_is_extended_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extension's first state replaces the one that the bundle is to hold."""
    store = copy_of(reference(), tmp_path / "ours")
    limits = Limits(checkpoint_mb=MAX_CHECKPOINT_MB)
    real = bundlefile.write_pack

    def extended(out: str, files: Any, about: Any) -> str:
        for name in names(store, "student"):
            store.delete_tree(paths.checkpoint_dir(name))
        return real(out, files, about)

    monkeypatch.setattr("orchestrator.bundleexport.write_pack", extended)
    export_bundle(store, str(tmp_path / "out"), limits=limits)
    assert sum(name.endswith(".ckpt") for name in read_pack(str(tmp_path / "out")).large) >= 6


def test_a_result_is_no_newer_than_the_rows_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver ends an extension just when the run's rows were read."""
    shorter = bent(reference_bundle(), tmp_path / "shorter", lambda one: shortened(one, 10))
    store = Store(tmp_path / "ours")
    bring(store, shorter)
    name = names(store, "student")[0]

    def extended(self: Store, one: str) -> Any:
        table = read_metrics(self, one)
        for rel in (paths.metrics(name), paths.result(name)):
            store.write_bytes(rel, reference().read_bytes(rel))
        return table

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.runrecord.read_metrics", extended)
        record = read_record(store, name)
    assert record is not None
    assert record.result is not None
    assert record.table is not None
    assert record.result["horizon"] == max(record.table["step"].to_pylist())


def test_a_state_before_every_row_is_left_out(tmp_path: Path) -> None:
    """Else the bundle would be one that no import takes."""
    store = copy_of(reference(), tmp_path / "ours")
    name = names(store, "student")[0]
    store.delete(paths.result(name))
    (state,) = store.list(paths.checkpoint_dir(name))
    early = paths.checkpoint(name, paths.step_name(0))
    store.move(f"{paths.checkpoint_dir(name)}/{state}", early)
    export_bundle(store, str(tmp_path / "out"), limits=Limits(checkpoint_mb=MAX_CHECKPOINT_MB))
    done = bring(Store(tmp_path / "other"), str(tmp_path / "out"))
    assert done.runs == {"new": 7}


# -- where a bundle is written ---------------------------------------------------------------------


def test_a_folder_with_somebodys_own_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("mydata.parquet", "model.safetensors"):
        (folder / name).write_bytes(b"precious")
    (folder / "bundle.json").write_text('{"name": "an application"}')
    with pytest.raises(UserError, match="holds other files"):
        export_bundle(reference(), str(folder))
    assert len(list(folder.iterdir())) == 3


def test_a_bundles_folder_keeps_what_is_not_the_bundles(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_bundle(reference(), str(out))
    (out / "notes.parquet").write_bytes(b"mine")
    manifest = json.loads((out / "bundle.json").read_text())
    export_bundle(reference(), str(out))
    assert (out / "notes.parquet").read_bytes() == b"mine"
    assert {*manifest["files"]} <= {path.name for path in out.iterdir()}


def test_a_zip_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in ./s3:/bucket of the folder that the command was given in."""
    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr("orchestrator.store_remote._open", lambda uri: (bucket, "found"))
    monkeypatch.chdir(tmp_path)
    export_bundle(reference(), "s3://bucket/found/b.zip")
    assert (tmp_path / "bucket" / "found" / "b.zip").is_file()
    assert not (tmp_path / "s3:").exists()
    assert bring(Store(tmp_path / "other"), "s3://bucket/found/b.zip").runs == {"new": 8}


def test_options_of_a_uri_come_after_the_name_of_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.store_remote._open", lambda uri: (None, "found"))
    store, name = zip_place("s3://bucket/found/b.zip?region=eu-west-1")
    assert (store.uri, name) == ("s3://bucket/found?region=eu-west-1", "b.zip")
    assert is_zip("s3://bucket/found/b.zip?region=eu-west-1")
    assert not is_zip("s3://bucket/found/b?region=b.zip")


def test_a_bucket_alone_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        check_place("s3://b.zip")
    with pytest.raises(UserError, match="no folder"):
        write_pack("s3://b.zip", {}, {})
    assert not list(tmp_path.iterdir())


def test_somebodys_own_archive_stays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("bundle.json", '{"name": "an application"}')
    before = (tmp_path / "photos.zip").read_bytes()
    for export in (check_place, partial(export_bundle, reference())):
        with pytest.raises(UserError, match="no bundle"):
            export(str(tmp_path / "photos.zip"))
    assert (tmp_path / "photos.zip").read_bytes() == before


def test_a_bundles_archive_is_replaced(tmp_path: Path) -> None:
    out = str(tmp_path / "b.zip")
    for _ in range(2):
        check_place(out)
        export_bundle(reference(), out)
    assert read_pack(out).manifest["sweeps"] == [NAME]


_LONG = "a" * 300


@pytest.mark.parametrize(
    "out",
    ["x.zip", "afile/b.zip", "afile/sub/b", "/proc/nowhere/b", _LONG, f"{_LONG}/b", f"{_LONG}.zip"],
)
def test_places_that_take_no_bundle_are_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.zip").write_text("no archive")
    (tmp_path / "afile").write_text("a file")
    with pytest.raises(UserError):
        check_place(out)
    with pytest.raises(UserError):
        export_bundle(reference(), out)


@pytest.mark.parametrize("out", ["new/b.zip", "new/sub/b", "b.zip"])
def test_a_look_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    check_place(out)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_was_not_written_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StoreError("cannot write b: No space left on device")

    monkeypatch.setattr("orchestrator.storecommands.export_store", full)
    out = io.StringIO()
    export = BundleExport(str(tmp_path / "b"))
    failed = export_so_far(Console(file=out, width=200), reference(), export, [NAME])
    assert failed is not None
    assert "no bundle: cannot write b" in out.getvalue()


def test_a_disk_without_room_for_copies_costs_the_bundle_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orchestrator.bundleweights.TemporaryDirectory", full)
    export = BundleExport(str(tmp_path / "b"), with_weights=True)
    failed = export_so_far(Console(file=io.StringIO()), reference(), export, [NAME])
    assert failed is not None
    assert "No space left" in str(failed)

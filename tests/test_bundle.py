"""Results carried from store to store: verified, added up, never overwritten."""

from __future__ import annotations

import json
import shutil
import socket
import zipfile
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from orchestrator import paths
from orchestrator.bundle import machine_name, unpack
from orchestrator.bundleexport import export_bundle
from orchestrator.bundlefile import read_pack
from orchestrator.bundleimport import import_bundles
from orchestrator.bundling import check_place
from orchestrator.errors import UserError
from orchestrator.store import Store
from tests.bundle_stores import (
    NAME,
    bring,
    copy_of,
    names,
    part_of,
    reference,
    reference_bundle,
    rewrite_line,
    tables,
    tree,
)
from tests.driving import digests, facts, rows_of


@pytest.fixture
def finished() -> Store:
    return reference()


@pytest.fixture
def whole() -> str:
    """The bundle of everything; not to be changed."""
    return reference_bundle()


@pytest.fixture
def bundle(whole: str, tmp_path: Path) -> str:
    """A copy to damage."""
    return str(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "elsewhere")


# -- there and back ------------------------------------------------------------------------------


def test_a_round_trip_gives_the_same_tables(finished: Store, whole: str, store: Store) -> None:
    done = bring(store, whole)
    assert done.runs == {"new": 1 + 1 + 6}
    assert [*done.conflicts, *done.notes] == []
    assert tables(store) == tables(finished)
    plan = paths.plan_json(NAME)
    assert store.read_bytes(plan) == finished.read_bytes(plan)
    for name in names(finished, "student"):
        assert rows_of(store, name) == rows_of(finished, name)


def test_what_was_imported_can_be_exported_again(whole: str, store: Store, tmp_path: Path) -> None:
    bring(store, whole)
    export_bundle(store, str(tmp_path / "again"))
    assert read_pack(str(tmp_path / "again")).files == read_pack(whole).files


def test_equal_stores_give_equal_bytes(finished: Store, whole: str, tmp_path: Path) -> None:
    for out in (tmp_path / "folder", tmp_path / "file.zip", tmp_path / "folder"):
        export_bundle(finished, str(out))
        packed, before = read_pack(str(out)), read_pack(whole)
        assert packed.files == before.files
        assert {**packed.manifest, "created": 0} == {**before.manifest, "created": 0}
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {
        "bundle.json", "runs.jsonl", "plans.jsonl", "metrics-student.parquet",
        "metrics-teacher.parquet",
    }  # fmt: skip


def test_a_zip_file_is_imported_too(finished: Store, store: Store, tmp_path: Path) -> None:
    export_bundle(finished, str(tmp_path / "one.zip"))
    bring(store, str(tmp_path / "one.zip"))
    assert tables(store) == tables(finished)


def test_two_machines_make_one_table(finished: Store, store: Store, tmp_path: Path) -> None:
    parts = [part_of(finished, tmp_path / f"part{seed}", f"seed={seed}") for seed in (0, 1)]
    assert bring(store, parts[0]).runs == {"new": 1 + 1 + 3}
    assert tables(store) != tables(finished)
    assert bring(store, parts[1]).runs == {"new": 3, "same": 2}
    assert tables(store) == tables(finished)


def test_importing_again_changes_nothing(whole: str, store: Store) -> None:
    bring(store, whole)
    before = tree(store)
    done = bring(store, whole)
    assert done.runs == {"same": 8}
    assert tree(store) == before


def test_an_interrupted_import_is_finished_by_the_next(whole: str, store: Store) -> None:
    bring(store, whole)
    before = tree(store)
    (name, *_) = names(store, "student")
    store.delete(paths.result(name))
    store.delete(paths.metrics(name))
    assert bring(store, whole).runs == {"same": 7, "grown": 1}
    after = tree(store)
    assert {rel for rel in before if before[rel] != after[rel]} <= {paths.imported_json(name)}


# -- what goes in --------------------------------------------------------------------------------


def test_no_weights_no_paths_no_names_of_machines(finished: Store, whole: str) -> None:
    for file in Path(whole).iterdir():
        data = file.read_bytes()
        for secret in (f'"{socket.gethostname()}"', str(finished.root), '"attempt"', "/tmp"):
            assert secret.encode() not in data, (file.name, secret)
    (entry,) = {one["hostname"] for one in read_pack(whole).manifest["hardware"]}
    assert entry == machine_name(socket.gethostname()) == machine_name(entry)


def test_incomplete_runs_stay_where_they_are(finished: Store, tmp_path: Path) -> None:
    copied = copy_of(finished, tmp_path / "copy")
    begun, broken, *_ = names(copied, "student")
    copied.delete(paths.result(begun))
    copied.write_bytes(paths.metrics(broken), b"PAR1")
    done = export_bundle(copied, str(tmp_path / "out"))
    assert (done.left_out, done.damaged) == (1, (broken,))
    assert done.runs == {"student": 4, "targets": 1, "teacher": 1}


def test_rows_of_an_extension_under_way_stay_out(finished: Store, tmp_path: Path) -> None:
    copied = copy_of(finished, tmp_path / "copy")
    name = names(copied, "student")[0]
    copied.write_json(paths.result(name), facts(copied, name) | {"horizon": 10, "step": 10})
    export_bundle(copied, str(tmp_path / "out"))
    records, _ = unpack(read_pack(str(tmp_path / "out")))
    (record,) = [record for record in records if record.name == name]
    assert record.table is not None
    assert record.table["step"].to_pylist() == [10]


def test_a_teacher_that_still_searches_is_named_by_its_snapshots(
    finished: Store, store: Store, tmp_path: Path
) -> None:
    copied = copy_of(finished, tmp_path / "copy")
    (teacher,) = names(copied, "teacher")
    copied.delete(paths.result(teacher))
    export_bundle(copied, str(tmp_path / "out"))
    bring(store, str(tmp_path / "out"))
    assert not store.exists(paths.result(teacher))
    assert digests(store, teacher) == digests(finished, teacher)


def test_a_group_brings_the_sweeps_it_stands_for(
    finished: Store, store: Store, tmp_path: Path
) -> None:
    copied = copy_of(finished, tmp_path / "copy")
    plan = {"sweep": "all", "semantics": 1, "settings": {}, "fields": [], "points": []}
    copied.write_json(paths.plan_json("all"), plan | {"include": [NAME, "never-planned"]})
    assert export_bundle(copied, str(tmp_path / "out"), ["all"]).sweeps == ("all", NAME)
    bring(store, str(tmp_path / "out"))
    assert store.list(paths.sweeps_dir()) == ["all", NAME]
    assert tables(store) == tables(finished)


def test_other_files_are_not_overwritten(finished: Store, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        export_bundle(finished, str(tmp_path))
    with pytest.raises(UserError, match="no sweep 'tinny'") as caught:
        export_bundle(finished, str(tmp_path / "out"), ["tinny"])
    assert "tiny" in caught.value.remedy


def test_an_export_that_is_cut_off_leaves_the_older_bundle(
    finished: Store, whole: str, bundle: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a kill falls, the folder is a bundle, or one may be written there again."""
    (Path(bundle) / "README.md").write_text("mine")
    before = read_pack(bundle).digest

    def killed_after(method: str, calls: int) -> None:
        seen, act = count(1), getattr(Store, method)

        def stand_in(self: Store, *given: Any) -> None:
            if next(seen) > calls:
                raise KeyboardInterrupt
            act(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(Store, method, stand_in)
            with pytest.raises(KeyboardInterrupt):
                export_bundle(finished, bundle)

    killed_after("write_bytes", 2)
    assert read_pack(bundle).digest == before
    check_place(bundle)
    killed_after("move", 1)
    assert "has no bundle.json" in refused(store, bundle)
    check_place(bundle)
    export_bundle(finished, bundle)
    assert sorted(path.name for path in Path(bundle).iterdir()) == sorted(
        ["README.md", *(path.name for path in Path(whole).iterdir())]
    )
    assert bring(store, bundle).runs == {"new": 8}


@pytest.mark.parametrize(
    "hardware", [["abc"], [{"runs": "7", "wall_time_s": 1.0}], [{"runs": 7}], {"runs": 1}]
)
def test_hardware_that_is_none(bundle: str, store: Store, hardware: Any) -> None:
    path = Path(bundle) / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hardware": hardware}))
    assert "bundle.json is damaged" in refused(store, bundle)


# -- damage and malice ---------------------------------------------------------------------------


def refused(store: Store, *bundles: str) -> str:
    before = tree(store)
    with pytest.raises(UserError) as caught:
        import_bundles(store, bundles)
    assert caught.value.exit_status == 2
    assert caught.value.remedy
    assert tree(store) == before
    return str(caught.value)


@pytest.mark.parametrize(
    "file", ["runs.jsonl", "plans.jsonl", "metrics-student.parquet", "metrics-teacher.parquet"]
)
def test_a_damaged_byte_changes_nothing(whole: str, bundle: str, store: Store, file: str) -> None:
    path = Path(bundle, file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"{file} is damaged" in refused(store, bundle)
    refused(store, whole, bundle)  # nor does the sound one beside it


def test_missing_files_and_no_bundles(bundle: str, store: Store, tmp_path: Path) -> None:
    Path(bundle, "runs.jsonl").unlink()
    assert "runs.jsonl cannot be read" in refused(store, bundle)
    Path(bundle, "bundle.json").unlink()
    assert "is no bundle" in refused(store, bundle)
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 no more")
    assert "no zip file" in refused(store, str(tmp_path / "cut.zip"))


@pytest.mark.parametrize(("field", "said"), [("semantics", "semantics 7"), ("format", "format 7")])
def test_other_versions_are_refused(bundle: str, store: Store, field: str, said: str) -> None:
    path = Path(bundle, "bundle.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: 7}))
    assert said in refused(store, bundle)


def seed_7(line: Any) -> None:
    line["run"]["spec"]["seed"] = 7


def semantics_2(line: Any) -> None:
    line["run"]["spec"]["semantics"] = 2


def no_spec(line: Any) -> None:
    line["run"] = []


def result_of_another(line: Any) -> None:
    line["result"]["key"] = "0" * 64


def foreign_snapshot(line: Any) -> None:
    line["snapshots"] = {"../../../evil": {"preset": 20}}


def digest_of_a_path(line: Any) -> None:
    line["result"]["teacher_digest"] = "../evil"


def not_a_number(line: Any) -> None:
    line["result"]["wall_time_s"] = float("nan")


def preset_of_no_number(line: Any) -> None:
    line["result"]["presets"] = {"abc": {}}


def no_rows(line: Any) -> None:
    line["columns"] = None


@pytest.mark.parametrize(
    "change",
    [seed_7, semantics_2, no_spec, result_of_another, foreign_snapshot, digest_of_a_path,
     not_a_number, preset_of_no_number, no_rows],
)  # fmt: skip
def test_lines_that_no_store_would_hold(bundle: str, store: Store, change: Any) -> None:
    rewrite_line(bundle, "runs.jsonl", change)
    assert "runs.jsonl, line 1" in refused(store, bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(sweep="../evil"),
        lambda plan: plan["points"][0].update(run="../../evil"),
        lambda plan: plan.pop("points"),
        lambda plan: plan["report"][0].update(caption="of a later version"),
        lambda plan: plan.update(scale=7),
    ],
)
def test_plans_that_no_store_would_hold(bundle: str, store: Store, change: Any) -> None:
    rewrite_line(bundle, "plans.jsonl", change)
    assert "plans.jsonl, line 1" in refused(store, bundle)


def test_members_with_paths_of_their_own(
    whole: str, finished: Store, store: Store, tmp_path: Path
) -> None:
    evil = tmp_path / "evil.zip"
    stated = {"sha256": sha256(b"boo").hexdigest(), "bytes": 3}
    manifest = json.loads(Path(whole, "bundle.json").read_text())
    manifest["files"]["../evil.jsonl"] = stated
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("bundle.json", json.dumps(manifest))
        archive.writestr("../evil.jsonl", b"boo")
        for name, data in read_pack(whole).files.items():
            archive.writestr(name, data)
    assert "../evil.jsonl" in refused(store, str(evil))
    carrier = tmp_path / "carrier.zip"
    export_bundle(finished, str(carrier))
    with zipfile.ZipFile(carrier, "a") as archive:  # unlisted: never looked at
        archive.writestr("../evil2", b"boo")
    bring(store, str(carrier))
    assert [str(path) for path in tmp_path.rglob("*evil2*")] == []

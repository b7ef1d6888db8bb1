"""Bundles with weights: the very same teacher, or a copy that says so; and runs that go on."""

from __future__ import annotations

import csv
import io
import json
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dashboards.report import write_report
from orchestrator import cli, paths
from orchestrator.bundleexport import Exported, export_bundle
from orchestrator.bundlefile import read_pack, write_pack
from orchestrator.bundleimport import import_bundles
from orchestrator.bundlesnapshots import as_copy, disagreement, forms, joined, snapshot_fault
from orchestrator.bundleweights import Limits, decoded
from orchestrator.bundling import BundleExport, export_so_far
from orchestrator.errors import UserError
from orchestrator.inventory import read_inventory
from orchestrator.plan import Plan
from orchestrator.store import Store
from tests.bundle_stores import (
    NAME,
    SWEEP,
    bring,
    copy_of,
    names,
    reference,
    tree,
    write_plan,
)
from tests.driving import (
    checkpoints,
    digits_store,
    drive_here,
    facts,
    numbers,
    rows_of,
    tiny_plan,
)
from trainers.checkpoint import (
    dump_weights,
    parse_state,
    parse_weights,
    weights_digest,
    write_state,
)

EXACT = Limits(teacher_mb=25.0)
HALVED = Limits(teacher_mb=0.13)
"""The tiny teacher has 0.19 MB, and 0.10 MB in 16 bits."""


@cache
def bundle_of(limits: Limits) -> tuple[str, Exported]:
    """A bundle of seed 0 alone, by what goes along; not to be changed."""
    folder = Path(reference().root).parent / f"weights-{limits}"
    half = copy_of(reference(), folder / "store")
    for name in names(half, "student"):
        if (half.read_json(paths.run_json(name)) or {})["spec"].get("seed", 0):
            half.delete_tree(paths.run_dir(name))
    write_plan(folder, half, "seed=0")
    return str(folder / "bundle"), export_bundle(half, str(folder / "bundle"), (), limits)


def teacher_of(store: Store) -> str:
    (name,) = names(store, "teacher")
    return name


def snapshot_of(store: Store) -> dict[str, Any]:
    found = store.read_json(paths.snapshot_json(teacher_of(store), 20))
    assert found is not None
    return found


def goes_on(tmp_path: Path, store: Store) -> Plan:
    """Both seeds asked of a store that has seed 0: what was left, done."""
    plan = tiny_plan(tmp_path, store, text=SWEEP)
    assert plan.work[teacher_of(store)].action == "done"
    drive_here(plan, store)
    assert plan.subtract(read_inventory(store, plan.units)).left == []
    write_plan(tmp_path, store)
    return plan


def teachers_behind(store: Store) -> dict[str, int]:
    """Students by the digest of their teacher, as the report counts them."""
    report = write_report(store.uri, NAME)
    lines = (Path(report.root) / "tables/teachers.csv").read_text().splitlines()
    return {row["digest"]: int(row["runs"]) for row in csv.DictReader(lines)}


# -- the very same teacher -----------------------------------------------------------------------


def test_a_student_elsewhere_learns_from_the_same_weights(tmp_path: Path) -> None:
    bundle, done = bundle_of(EXACT)
    assert (done.weights, done.checkpoints, done.unfit) == (1, 0, ())
    store = digits_store(tmp_path / "here")
    assert bring(store, bundle).notes == []
    rel = paths.snapshot_weights(teacher_of(store), 20)
    assert store.read_bytes(rel) == reference().read_bytes(rel)
    goes_on(tmp_path, store)
    for name in names(store, "student"):
        assert facts(store, name)["teacher_digest"] == facts(reference(), name)["teacher_digest"]
        assert numbers(store, name) == numbers(reference(), name)
    assert teachers_behind(store) == {snapshot_of(reference())["digest"]: 4}


# -- a copy in 16 bits ---------------------------------------------------------------------------


def test_a_copy_is_a_teacher_of_its_own_and_says_whose(tmp_path: Path) -> None:
    bundle, done = bundle_of(HALVED)
    assert (done.weights, done.unfit) == (1, ())
    store = digits_store(tmp_path / "here")
    assert bring(store, bundle).notes[0].startswith("2 students learnt from the other form")
    original, copy = snapshot_of(reference()), snapshot_of(store)
    digest = copy["digest"]
    assert copy["of"] == original["digest"] != digest
    assert copy["also"] == {original["digest"]: original["accuracy"]}
    data = store.read_bytes(paths.snapshot_weights(teacher_of(store), 20))
    assert weights_digest(data) == digest
    whole = parse_weights(reference().read_bytes(paths.snapshot_weights(teacher_of(store), 20)))
    for name, weight in parse_weights(data).items():
        rounded = whole[name].half().float() if whole[name].is_floating_point() else whole[name]
        assert weight.dtype == whole[name].dtype
        assert weight.equal(rounded)

    goes_on(tmp_path, store)
    assert teachers_behind(store) == {original["digest"]: 2, digest: 2}
    report = write_report(store.uri, NAME)
    assert "More than one teacher snapshot" in dict(report.tables)["strategies"]


def test_what_students_of_a_copy_gave_comes_back(tmp_path: Path) -> None:
    store = digits_store(tmp_path / "here")
    bring(store, bundle_of(HALVED)[0])
    goes_on(tmp_path, store)
    back = export_bundle(store, str(tmp_path / "back"), (), HALVED)
    assert back.unfit == ()
    entry = json.loads(Path(tmp_path, "back/runs.jsonl").read_text().splitlines()[-1])
    assert entry["weights"]["20"]["digest"] == snapshot_of(store)["digest"]  # no copy of a copy

    home = Store(tmp_path / "home")
    bring(home, bundle_of(EXACT)[0])
    done = bring(home, str(tmp_path / "back"))
    assert done.conflicts == []
    assert done.runs == {"same": 4, "new": 3, "grown": 1}
    kept = snapshot_of(home)
    assert kept["digest"] == snapshot_of(reference())["digest"]
    assert kept["also"].keys() == {snapshot_of(store)["digest"]}
    assert len(teachers_behind(home)) == 2
    before = tree(home)
    bring(home, str(tmp_path / "back"))
    assert tree(home) == before


def test_what_is_too_large_stays_with_a_line(tmp_path: Path) -> None:
    _, done = bundle_of(Limits(teacher_mb=0.05))
    assert done.weights == 0
    (line,) = done.unfit
    assert "as 16-bit floats, more than --max-teacher-mb 0.05" in line
    blind = copy_of(reference(), tmp_path / "blind")
    shutil.rmtree(blind.root / "datasets")
    (line,) = export_bundle(blind, str(tmp_path / "out"), (), HALVED).unfit
    assert "cannot be measured" in line


def test_teachers_go_before_any_student_is_done(tmp_path: Path) -> None:
    early = copy_of(reference(), tmp_path / "early")
    for name in (*names(early, "student"), *names(early, "targets")):
        early.delete_tree(paths.run_dir(name))
    with pytest.raises(UserError, match="no complete run"):
        export_bundle(early, str(tmp_path / "none"))
    done = export_bundle(early, str(tmp_path / "out"), (), EXACT)
    assert (done.runs, done.weights) == ({"teacher": 1}, 1)


def test_records_of_several_forms() -> None:
    original = {"preset": 20.0, "step": 3, "accuracy": 20.4, "alpha": 1.0, "digest": "a" * 64,
                "teacher": "k"}  # fmt: skip
    copy = as_copy(original, "b" * 64, 20.3)
    assert forms(copy) == {"a" * 64: 20.4, "b" * 64: 20.3}
    assert snapshot_fault("k", "20", copy) is None
    assert disagreement(original, copy) == ""
    assert joined(original, copy) == original | {"also": {"b" * 64: 20.3}}
    assert joined(copy, original) == copy
    assert disagreement(original, copy | {"step": 4}).startswith("step")
    assert disagreement(original, copy | {"also": {"a" * 64: 20.9}}).startswith("accuracy of aaaa")
    assert disagreement(original, original | {"digest": "c" * 64}).startswith("digest")
    assert snapshot_fault("k", "20", copy | {"of": "c" * 64}) is not None
    assert snapshot_fault("k", "20", copy | {"also": {"../a": 1}}) is not None


# -- checkpoints ---------------------------------------------------------------------------------

WITH_STATES = Limits(teacher_mb=25.0, checkpoint_mb=200.0)


def test_a_longer_run_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    bundle, done = bundle_of(WITH_STATES)
    assert done.checkpoints == 4
    stores = [digits_store(tmp_path / "here"), digits_store(tmp_path / "afresh")]
    bring(stores[0], bundle)
    bring(stores[1], bundle_of(EXACT)[0])
    text = SWEEP.replace("steps: 20", "steps: 30").replace("seed: [0, 1]", "seed: [0]")
    starts = []
    for store in stores:
        plan = tiny_plan(tmp_path, store, text=text)
        students = plan.of_kind("student")
        starts.append({plan.work[unit.name].from_step for unit in students})
        drive_here(plan, store)
    assert starts == [{20}, {0}]
    for name in names(stores[0], "student"):
        assert numbers(stores[0], name) == numbers(stores[1], name)
        assert facts(stores[0], name)["horizon"] == 30


def test_an_interrupted_run_goes_on_elsewhere(tmp_path: Path) -> None:
    cut = copy_of(reference(), tmp_path / "cut")
    name = names(cut, "student")[0]
    cut.delete(paths.result(name))
    assert export_bundle(cut, str(tmp_path / "plain")).left_out == 1
    small = Limits(teacher_mb=25.0, checkpoint_mb=0.1)
    done = export_bundle(cut, str(tmp_path / "small"), (), small)
    assert (done.left_out, done.checkpoints, len(done.unfit)) == (1, 0, 7)
    assert "more than --max-checkpoint-mb 0.1" in done.unfit[0]
    assert export_bundle(cut, str(tmp_path / "out.zip"), (), WITH_STATES).left_out == 0

    store = digits_store(tmp_path / "here")
    bring(store, str(tmp_path / "out.zip"))
    assert checkpoints(store, name) == ["step-00000020.ckpt"]
    (entry,) = (store.read_json(paths.imported_json(name)) or {})["bundles"]
    assert entry["environment"] == {"hardware": "not recorded"}  # no report takes it for ours
    plan = tiny_plan(tmp_path, store, text=SWEEP)
    assert (plan.work[name].action, plan.work[name].from_step) == ("resume", 20)
    drive_here(plan, store)
    assert numbers(store, name) == numbers(reference(), name)
    before = tree(store)
    assert bring(store, str(tmp_path / "out.zip")).runs == {"same": 8}
    assert tree(store) == before


def test_a_run_at_work_replaces_its_state_while_it_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows and the state that go along belong together, wherever the next save falls."""
    cut = copy_of(reference(), tmp_path / "cut")
    name = names(cut, "student")[0]
    cut.delete(paths.result(name))
    rel = paths.checkpoint(name, paths.step_name(20))
    state = parse_state(cut.read_bytes(rel))
    earlier = state | {"step": 10}
    cut.write_stream(paths.checkpoint(name, paths.step_name(10)), partial(write_state, earlier))
    whole = cut.read_bytes(rel)
    cut.delete(rel)
    reading = Store.read_bytes

    def saved_meanwhile(self: Store, asked: str) -> bytes:
        """The run saves as soon as somebody wants the state that he saw."""
        if asked.endswith(paths.checkpoint(name, paths.step_name(10))) and not cut.exists(rel):
            cut.write_bytes(rel, whole)
            cut.delete(asked)
        data = reading(self, asked)
        if asked == rel:  # read once, and gone before the bundle is written
            cut.delete(rel)
        return data

    monkeypatch.setattr(Store, "read_bytes", saved_meanwhile)
    done = export_bundle(cut, str(tmp_path / "out"), (), WITH_STATES)
    monkeypatch.undo()
    assert (done.left_out, done.unfit) == (0, ())
    assert not [path for path in tmp_path.iterdir() if "export" in path.name]
    store = digits_store(tmp_path / "here")
    bring(store, str(tmp_path / "out"))
    assert checkpoints(store, name) == ["step-00000020.ckpt"]
    assert [row["step"] for row in rows_of(store, name)] == [10, 20]


def test_no_checkpoint_goes_on_with_another_teacher(tmp_path: Path) -> None:
    """The copy that lies here is not what the students of the checkpoints began with."""
    store = digits_store(tmp_path / "here")
    bring(store, bundle_of(HALVED)[0])
    done = bring(store, bundle_of(WITH_STATES)[0])
    assert done.notes[0].startswith("2 checkpoints were left out")
    without = [name for name in names(store, "student") if not checkpoints(store, name)]
    assert all(facts(store, name)["teacher_digest"] for name in without)
    assert len(without) == 2
    alone = Store(tmp_path / "alone")
    bundle, _ = bundle_of(Limits(checkpoint_mb=200.0))
    assert bring(alone, bundle).notes[0].startswith("2 checkpoints were left out")


# -- damage and malice ---------------------------------------------------------------------------


def refused(store: Store, bundle: str) -> str:
    before = tree(store)
    with pytest.raises(UserError) as caught:
        import_bundles(store, [bundle])
    assert caught.value.exit_status == 2
    assert tree(store) == before
    return str(caught.value)


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """A copy to damage."""
    return str(shutil.copytree(bundle_of(WITH_STATES)[0], tmp_path / "bundle"))


def member(bundle: str, start: str) -> Path:
    return next(path for path in sorted(Path(bundle).iterdir()) if path.name.startswith(start))


@pytest.mark.parametrize("start", ["snapshot-", "state-student-", "state-teacher-"])
def test_a_tampered_file_changes_nothing(bundle: str, tmp_path: Path, start: str) -> None:
    path = member(bundle, start)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store = Store(tmp_path / "here")
    assert f"{path.name} is damaged" in refused(store, bundle)
    ended = CliRunner().invoke(cli.app, ["store", "import", bundle, "--store", store.uri])
    assert getattr(ended.exception, "exit_status", None) == 2
    repacked(bundle, {path.name: bytes(data)})  # with checksums that fit
    assert "weights 20 are not those" in (said := refused(store, bundle)) or "checkpoint" in said


def repacked(bundle: str, changed: dict[str, bytes | None]) -> None:
    """The bundle with other members and right checksums."""
    packed = read_pack_unchecked(bundle)
    files = {name: data for name, data in (packed | changed).items() if data is not None}
    manifest = json.loads(Path(bundle, "bundle.json").read_text())
    about = {k: v for k, v in manifest.items() if k not in ("files", "format", "semantics")}
    write_pack(bundle, files, about)


def read_pack_unchecked(bundle: str) -> dict[str, bytes | None]:
    return {p.name: p.read_bytes() for p in Path(bundle).iterdir() if p.name != "bundle.json"}


def test_weights_of_another_teacher_are_refused(bundle: str, tmp_path: Path) -> None:
    """Sound files with right checksums, that are not what the records speak of."""
    store, path = Store(tmp_path / "here"), member(bundle, "snapshot-")
    other = dump_weights({name: w * 2 for name, w in parse_weights(path.read_bytes()).items()})
    repacked(bundle, {path.name: other})
    assert "not those of their digest" in refused(store, bundle)
    number = len(Path(bundle, "runs.jsonl").read_text().splitlines()) - 1

    def relabel(line: Any) -> None:
        line["weights"]["20"]["digest"] = weights_digest(other)

    files = read_pack_unchecked(bundle)
    lines = (files["runs.jsonl"] or b"").splitlines()
    content = json.loads(lines[number])
    relabel(content)
    lines[number] = json.dumps(content).encode()
    repacked(bundle, {"runs.jsonl": b"\n".join(lines) + b"\n"})
    assert "not those of the snapshot" in refused(store, bundle)
    repacked(bundle, {path.name: None})
    assert f"it has no {path.name}" in refused(store, bundle)


def test_a_copy_decodes_to_the_digest_it_has() -> None:
    packed = read_pack(bundle_of(HALVED)[0])
    (name,) = packed.large
    assert name == f"snapshot-{weights_digest(decoded(packed.read(name), 'float16'))[:16]}" + (
        ".safetensors"
    )
    assert packed.manifest["format"] == 2
    assert read_pack(bundle_of(Limits())[0]).manifest["format"] == 1


def test_the_command(tmp_path: Path) -> None:
    arguments = ["store", "export", "--store", reference().uri, "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(
        cli.app, [*arguments, "--teachers", "--checkpoints", "--max-checkpoint-mb", "0.1"]
    )
    assert ended.exit_code == 0, ended.output
    assert "weights of 1 teacher snapshots go along" in ended.output
    assert "left out: checkpoint of" in ended.output
    manifest = json.loads((tmp_path / "out/bundle.json").read_text())
    assert manifest["command"].endswith(
        "--teachers --max-teacher-mb 25 --checkpoints --max-checkpoint-mb 0.1"
    )
    ended = CliRunner().invoke(cli.app, [*arguments, "--max-teacher-mb", "3"])
    assert "give --teachers too" in str(ended.exception)


def test_the_end_of_a_run_with_and_without(tmp_path: Path) -> None:
    """`run --export-weights`: what `store export` takes where it is asked for everything."""
    console = Console(file=io.StringIO(), width=200)
    for with_weights in (False, True):
        out = str(tmp_path / f"{with_weights}")
        export_so_far(console, reference(), BundleExport(out, with_weights), [NAME])
    plain, whole = (
        [file.suffix for file in (tmp_path / name).rglob("*")] for name in ("False", "True")
    )
    assert ".safetensors" not in plain
    assert ".safetensors" in whole
    assert "teacher snapshots go along" in console.file.getvalue()


def test_weights_of_no_bundle_are_a_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["run", "sweeps/demo.yaml", "--store", str(tmp_path), "--export-weights"]
    )
    assert isinstance(result.exception, UserError)
    assert "give --export too" in str(result.exception)

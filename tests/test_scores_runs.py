"""Scores executed in this process, from the store into the store: who scores, its scores, and the
students that select by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dashboards.report import write_report
from orchestrator import paths
from orchestrator.ledger import State
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.storecheck import find_damage
from orchestrator.tracking_view import view
from orchestrator.units import Unit
from orchestrator.weightsfiles import read_scores
from orchestrator.worker import execute
from tests.driving import (
    RUNTIME,
    TINY,
    checkpoints,
    conductor_of,
    digits_store,
    drive_here,
    facts,
    killed_in_turn,
    numbers,
    tiny_plan,
)
from tests.sweep_files import write
from tests.training_helpers import StopAfter
from tests.two_workers import reports_of_two
from trainers.checkpoint import weights_digest
from trainers.data.catalogue import OFFICIAL
from trainers.errors import NonFiniteLossError
from trainers.scores import num_chunks

SELECTING = (
    TINY.replace("  augmentation: none\n", "")
    + """\
  augmentation: none
  selection: {steps: 10, fraction: 0.5}
grids:
  - axes: {strategy: [C], teacher.accuracy: [20], loss: [LOSS], selection.method: [METHOD]}
"""
)


def text_of(method: str = "influence", loss: str = "decoupled") -> str:
    return SELECTING.replace("METHOD", method).replace("LOSS", loss)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("reference")
    store = digits_store(folder / "store")
    drive_here(tiny_plan(folder, text=text_of()), store)
    return store


def plan_in(folder: Path, store: Store, text: str | None = None) -> Plan:
    return tiny_plan(folder, store, text=text or text_of())


def only(plan: Plan, kind: str) -> Unit:
    (unit,) = plan.of_kind(kind)
    return unit


def selecting(plan: Plan) -> Unit:
    (unit,) = [unit for unit in plan.of_kind("student") if unit.rank == 4]
    return unit


def test_who_scores_then_scores_then_who_selects(reference: Store, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, reference)
    assert plan.left == []
    scores, scorer = only(plan, "scores"), plan.of_kind("student")[0]
    values, digest = read_scores(reference, scores.name)
    assert values.shape == (1438,)
    assert values.dtype == torch.float32
    assert (values > 0).all()
    assert digest == weights_digest(reference.read_bytes(paths.scores_weights(scores.name)))
    result = facts(reference, scores.name)
    assert result["kind"] == "scores"
    assert result["step"] == num_chunks(scores.spec.scoring, 1438)
    kept = reference.read_json(paths.kept_json(scorer.name, 10)) or {}
    assert result["student_digests"] == [kept["digest"]]
    assert checkpoints(reference, scores.name) == []
    student = facts(reference, selecting(plan).name)
    assert student["scores_digest"] == digest
    assert student["teacher_digest"] is not None
    assert not reference.exists(paths.metrics(scores.name))
    assert view(reference, scores.name, live=False) is None
    assert list(find_damage(reference)) == []


@pytest.mark.parametrize("method", ["el2n", "loss", "tracin", "random"])
def test_every_method_makes_a_students_selection(method: str, store: Store, tmp_path: Path) -> None:
    text = text_of(method).replace("steps: 10, ", "" if method == "random" else "steps: 10, ")
    conductor = drive_here(plan_in(tmp_path, store, text), store)
    assert conductor.ledger.count(State.DONE) == len(conductor.ledger.entries)
    plan = plan_in(tmp_path, store, text)
    assert plan.left == []
    values, _ = read_scores(store, only(plan, "scores").name)
    assert len(values.unique()) > 1000


def test_conventional_distillation_selects_too(store: Store, tmp_path: Path) -> None:
    conductor = drive_here(plan_in(tmp_path, store, text_of(loss="kd")), store)
    assert conductor.ledger.count(State.DONE) == 5
    rows = numbers(store, selecting(plan_in(tmp_path, store, text_of(loss="kd"))).name)
    assert all(row["top1_h"] == row["top1_g"] for row in rows)


def test_killed_at_any_change_of_the_store(reference: Store, tmp_path: Path) -> None:
    names = [unit.name for unit in plan_in(tmp_path, reference).units if unit.kind == "student"]
    (scores,) = plan_in(tmp_path, reference).of_kind("scores")
    digest = read_scores(reference, scores.name)[1]
    for lives, survived in killed_in_turn(tmp_path, plan_in, every=127):
        for name in names:
            assert numbers(survived, name) == numbers(reference, name), lives
        assert read_scores(survived, scores.name)[1] == digest, lives
        assert plan_in(tmp_path, survived).left == []
    assert lives > 100


def test_a_stopped_scoring_goes_on(store: Store, reference: Store, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, store)
    scores = only(plan, "scores")
    conductor = conductor_of(plan, store)
    while (config := conductor.next_trial()) is not None and config["unit"] != scores.name:
        for report in execute(store, config["unit"], RUNTIME, None, config["attempt"]):
            conductor.on_report({"unit": config["unit"], **report})
        conductor.on_end(config["unit"], lost=False)

    first = list(execute(store, scores.name, RUNTIME, StopAfter(4)))
    assert first[-1] == {**first[-1], "event": "finished", "reason": "stopped", "step": 4}
    assert len(checkpoints(store, scores.name)) == 1
    again = list(execute(store, scores.name, RUNTIME, None))
    assert again[0]["first_step"] == 5
    assert read_scores(store, scores.name)[1] == read_scores(reference, scores.name)[1]


def test_damaged_scores_are_named_and_made_again(store: Store, tmp_path: Path) -> None:
    drive_here(plan_in(tmp_path, store), store)
    plan = plan_in(tmp_path, store)
    scores, student = only(plan, "scores"), selecting(plan)
    before = read_scores(store, scores.name)[1]
    store.write_bytes(paths.scores_weights(scores.name), b"other bytes")
    store.delete_tree(paths.run_dir(student.name))
    (found,) = find_damage(store)
    assert found.rel == paths.scores_weights(scores.name)
    conductor = drive_here(plan_in(tmp_path, store), store)
    (entry,) = conductor.ledger.in_state(State.REDO)
    assert "is damaged" in entry.attempts.failures[-1].message
    drive_here(plan_in(tmp_path, store), store)
    assert read_scores(store, scores.name)[1] == before
    assert plan_in(tmp_path, store).left == []


def test_deleted_scores_are_made_again_for_who_needs_them(store: Store, tmp_path: Path) -> None:
    drive_here(plan_in(tmp_path, store), store)
    scores = only(plan_in(tmp_path, store), "scores")
    store.delete_tree(paths.run_dir(scores.name))
    assert plan_in(tmp_path, store).left == []
    more = text_of().replace("fraction: 0.5", "fraction: 0.25")
    assert [unit.kind for unit in plan_in(tmp_path, store, more).left] == ["scores", "student"]


def test_who_scores_fails_and_blocks_all_behind_it(store: Store, tmp_path: Path) -> None:
    def run(own: Store, name: str, *rest: object) -> object:
        if name.startswith("student"):
            raise NonFiniteLossError(7)
        return execute(own, name, *rest)  # type: ignore[arg-type]

    conductor = drive_here(plan_in(tmp_path, store), store, run=run)  # type: ignore[arg-type]
    assert conductor.ledger.count(State.FAILED) == 1
    blocked = {entry.task.name for entry in conductor.ledger.in_state(State.BLOCKED)}
    plan = plan_in(tmp_path, store)
    assert blocked == {only(plan, "scores").name, selecting(plan).name}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_workers_score_as_one_does(reference: Store, store: Store, tmp_path: Path) -> None:
    text = text_of().replace("grids:", "  workers: 2\n  scaling.teacher_workers: 1\ngrids:")
    plan = plan_in(tmp_path, store, text)
    scores = only(plan, "scores")
    assert scores.workers == 2
    conductor = conductor_of(plan, store)
    while conductor.ledger.entries[scores.name].state is not State.DONE:
        config = conductor.next_trial()
        assert config is not None
        name = config["unit"]
        if name != scores.name:
            reports = list(execute(store, name, RUNTIME, None, config["attempt"]))
        else:
            reports = reports_of_two(tmp_path, store.root, config)
        for report in reports:
            conductor.on_report({"unit": name, **report})
        conductor.on_end(name, lost=False)
    two, one = read_scores(store, scores.name)[0], read_scores(reference, scores.name)[0]
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)
    assert facts(store, scores.name)["environment"]["workers"] == 2


def test_a_report_says_what_scoring_took(store: Store, tmp_path: Path) -> None:
    text = text_of().replace("selection.method: [influence]", "selection.method: [null, influence]")
    text += "report:\n  - {table: ways, rows: [selection.method], columns: [strategy]}\n"
    (sweep,) = load_sweeps([write(tmp_path, text)], OFFICIAL)
    plan = make_plan([sweep], OFFICIAL)
    store.write_json(paths.plan_json("tiny"), plan_document(sweep, plan))
    before = json.loads(Path(write_report(store.uri, "tiny").provenance).read_text())["scoring"]
    scores = only(plan, "scores").name
    assert [(one["scores"], one["students"], one["share"]) for one in before] == [(scores, 0, None)]

    drive_here(plan, store)
    written = write_report(store.uri, "tiny")
    (found,) = json.loads(Path(written.provenance).read_text())["scoring"]
    seconds = facts(store, scores)["wall_time_s"]
    student = facts(store, selecting(plan).name)["wall_time_s"]
    assert found["method"] == "influence"
    assert [found["scorer"]] == [
        unit.name for unit in plan.of_kind("student") if unit.request.keep_weights_at
    ]
    assert (found["wall_time_s"], found["student_s"], found["students"]) == (seconds, student, 1)
    assert found["plain_student_s"] > 0
    assert found["share"] == pytest.approx(seconds / student)
    assert "What scoring took" in Path(written.index).read_text()

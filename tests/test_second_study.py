"""The second study's settings in plans: revision, selection, conventional distillation, noise."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.identity import canonical, from_canonical
from orchestrator.overrides import apply_overrides
from orchestrator.plan import make_plan
from orchestrator.settings import FIELDS
from orchestrator.spec import load_sweeps
from orchestrator.units import Held, HeldSnapshot
from tests.sweep_files import BASE, problems_of, sweep_of
from trainers.data.catalogue import OFFICIAL
from trainers.spec import Revision, Scoring, Selection, StudentRef

EPOCH = 390
SECOND_STUDY = tuple(
    name
    for name in FIELDS
    if name.partition(".")[0] in ("kd", "revision", "selection", "label_noise", "noise_seed")
    or name == "teacher.label_noise"
)
"""Settings that the first study does not have."""

KEYS = Path(__file__).with_name("first_study_keys.json")
"""By sweep file of the first study: how many units it asks, and the SHA-256 of their names. Made
before the second study's settings were there; in four of them CIFAR-100's students under a 2%
teacher have other names since, which is a trained one now (`TeacherRef.least`), and so have those
of ImageNet, whose teachers are screened adaptively. check_flattened has five students more since
2026-11-28, of a 60% teacher; its other 26 units are what they were."""

LR = "  revision: {eta: 0.8}\n"
DS = "  selection: {method: influence}\n"
KD = "  loss: kd\n"


def plan_of(*sweeps):
    return make_plan(sweeps, OFFICIAL)


def the(plan, kind):
    (unit,) = plan.of_kind(kind)
    return unit


def one(plan):
    (point,) = next(iter(plan.points.values()))
    (unit,) = [unit for unit in plan.units if unit.name == point.run]
    return unit


def student(folder, text="", base=BASE):
    return one(plan_of(sweep_of(folder, text, base)))


# -- the first study ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", json.loads(KEYS.read_text()))
def test_run_keys_of_the_first_study_are_what_they_were(file):
    plan = make_plan(load_sweeps([Path(file)]), OFFICIAL)
    names = sorted(f"{unit.kind}-{unit.key}" for unit in plan.units)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert {"units": len(names), "sha256": digest} == json.loads(KEYS.read_text())[file]


# -- fields ---------------------------------------------------------------------------------------

FULL = f"{KD}  ipc: 10\n  label_noise: 0.1\n{LR}  selection: {{method: METHOD}}\n"
CHANGED = {
    "influence": {
        "label_noise": 0.2, "noise_seed": 1, "teacher.label_noise": 0, "kd.alpha": 0.5,
        "kd.revised_weight": 0.5, "revision.eta": 0.5, "revision.only_wrong": "false",
        "selection.method": "el2n", "selection.fraction": 0.5, "selection.seed": 1,
        "selection.steps": 100, "selection.damping": 0.5,
    },
    "tracin": {"selection.checkpoints": 2, "selection.steps": 100},
    "random": {"selection.seed": 3},
}  # fmt: skip


@pytest.mark.parametrize("method", CHANGED)
def test_every_field_of_the_second_study_is_read_somewhere(method, tmp_path):
    sweep = sweep_of(tmp_path, FULL.replace("METHOD", method))
    base = one(plan_of(sweep))
    for name, value in CHANGED[method].items():
        changed = one(plan_of(apply_overrides(sweep, [f"{name}={value}"])))
        assert changed.key != base.key, name
    assert set().union(*CHANGED.values()) == set(SECOND_STUDY)


def test_settings_become_what_the_student_is(tmp_path):
    spec = student(tmp_path, FULL.replace("METHOD", "random")).spec
    assert (spec.loss, spec.alpha, spec.revised_weight) == ("kd", 0.9, 1.0)
    assert (spec.dataset.label_noise, spec.dataset.noise_seed) == (0.1, 0)
    assert spec.revision == Revision(eta=0.8, only_wrong=True)
    assert spec.selection == Selection(scoring=Scoring(method="random", seed=0), fraction=0.8)
    assert from_canonical(canonical(spec)) == spec


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (LR, "  revision: {only_wrong: true}\n"),
        (LR, "  revision.only_wrong: true\n"),
        (DS, "  selection: {fraction: 0.8}\n"),
        ("", "  revision: {eta: null}\n"),
        ("", "  selection: {method: influence, fraction: 1}\n"),
        ("", "  label_noise: 0\n"),
    ],
)
def test_two_ways_to_say_one_thing(text, same, tmp_path):
    assert student(tmp_path, text).key == student(tmp_path, same).key


def test_revision_applies_to_b_and_c_alone(tmp_path):
    b = sweep_of(
        tmp_path, LR + "grids: [{axes: {strategy: [A, B, C], revision.eta: [null, 0.5]}}]\n"
    )
    plan = plan_of(b)
    assert [point.point[0] for point in plan.points["small"]] == ["cifar10"] * 5
    assert len({point.run for point in plan.points["small"]}) == 5


def test_a_temperature_of_the_student_is_none_of_kd(tmp_path):
    assert student(tmp_path, KD).key == student(tmp_path, KD + "  student_temperature: 1\n").key
    (problem,) = problems_of(tmp_path, KD + "  student_temperature: 3\n")
    assert "under loss kd both sides have the temperature" in problem.remedy


@pytest.mark.parametrize(
    ("text", "key", "message", "nearest"),
    [
        ("  revision: {eta: 1}\n", "set.revision.eta", "is 1, expected a number above 0", None),
        ("  revision: {only_wrong: 1}\n", "set.revision.only_wrong", "true or false", None),
        ("  revision: {etta: 0.5}\n", "set.revision.etta", "unknown setting", "revision.eta"),
        ("  selection: {method: influnce}\n", "set.selection.method", "influence", "influence"),
        ("  selection: {fraction: 0}\n", "set.selection.fraction", "above 0 and at most 1", None),
        ("  label_noise: 1\n", "set.label_noise", "from 0 to below 1", None),
        ("  loss: kd\n  kd: {alpha: 1.5}\n", "set.kd.alpha", "from 0 to 1", None),
        ("  kd: {alpha: 0.5}\n", "set.kd.alpha", "applies to no point", None),
        (
            "  selection: {method: random, steps: 5}\n", "set.selection.steps",
            "applies to no point", None,
        ),
    ],
)  # fmt: skip
def test_bad_values_are_one_clear_error(text, key, message, nearest, tmp_path):
    (problem,) = problems_of(tmp_path, text)
    assert problem.key == key
    assert message in problem.message
    assert problem.nearest == nearest


# -- who is behind a selection --------------------------------------------------------------------


def test_scores_wait_for_a_plain_strategy_a_student_and_a_selecting_one_for_them(tmp_path):
    plan = plan_of(sweep_of(tmp_path, DS))
    teacher, scores = the(plan, "teacher"), the(plan, "scores")
    scorer, selecting = plan.of_kind("student")
    assert [unit.kind for unit in plan.units] == ["teacher", "student", "scores", "student"]
    assert scores.spec.scoring == Scoring(
        method="influence", student=StudentRef(key=scorer.key, step=10 * EPOCH), damping=0.1
    )
    assert scorer.spec.strategy == "A"
    assert scorer.request.keep_weights_at == (10 * EPOCH,)
    assert not scorer.answers
    assert scores.needs == scorer.provides
    assert selecting.needs == (*teacher.provides, scores.name)
    assert [unit.rank for unit in plan.units] == [0, 2, 3, 4]


def test_who_scores_is_the_run_that_the_sweep_asks_anyway(tmp_path):
    text = DS + "  selection.steps: 300\ngrids: [{axes: {strategy: [A, B, C], seed: [0, 1]}}]\n"
    plan = plan_of(sweep_of(tmp_path, text))
    plain = [unit for unit in plan.of_kind("student") if unit.spec.strategy == "A"]
    assert len(plan.of_kind("student")) == 6
    assert [unit.request.keep_weights_at for unit in plain] == [(300,), ()]
    assert all(unit.answers for unit in plain)
    assert len(plan.of_kind("scores")) == 1


def test_one_file_for_all_that_select_by_it(tmp_path):
    text = """\
  selection: {method: influence}
grids:
  - axes:
      selection.fraction: [0.2, 0.5, 1]
      ipc: [10, full]
      teacher.accuracy: [30, 60]
      seed: [0, 1]
"""
    plan = plan_of(sweep_of(tmp_path, text))
    assert len(plan.of_kind("scores")) == 1
    whole = [unit for unit in plan.of_kind("student") if unit.spec.selection is None]
    assert len(whole) == 2 * 2 * 2 + 1  # fraction 1 selects everything; who scores


def test_tracin_keeps_several_states(tmp_path):
    plan = plan_of(
        sweep_of(tmp_path, "  selection: {method: tracin, steps: 100, checkpoints: 3}\n")
    )
    assert plan.of_kind("student")[0].request.keep_weights_at == (34, 67, 100)
    assert len(the(plan, "scores").needs) == 3


def test_random_needs_nobody_and_follows_the_seed(tmp_path):
    text = "  selection: {method: random}\ngrids: [{axes: {seed: [0, 1]}}]\n"
    plan = plan_of(sweep_of(tmp_path, text))
    assert [unit.spec.scoring.seed for unit in plan.of_kind("scores")] == [0, 1]
    assert [unit.needs for unit in plan.of_kind("scores")] == [(), ()]
    told = plan_of(sweep_of(tmp_path, text.replace("random}", "random, seed: 5}")))
    assert the(told, "scores").spec.scoring.seed == 5


def test_noise_reaches_teacher_student_and_scores(tmp_path):
    plan = plan_of(sweep_of(tmp_path, DS + "  label_noise: 0.2\n  noise_seed: 3\n", BASE))
    noisy = {unit.spec.dataset.label_noise for unit in plan.units}
    assert noisy == {0.2}
    clean = plan_of(sweep_of(tmp_path, "  label_noise: 0.2\n  teacher.label_noise: 0\n"))
    assert the(clean, "teacher").key == the(plan_of(sweep_of(tmp_path)), "teacher").key


def test_soft_targets_know_no_labels(tmp_path):
    base = BASE.replace("strategy: B", "strategy: C")
    text = "  teacher.label_noise: 0\n"
    clean = plan_of(sweep_of(tmp_path, "", base))
    noisy = plan_of(sweep_of(tmp_path, text + "  label_noise: 0.2\n", base))
    assert the(clean, "targets").key == the(noisy, "targets").key


# -- what is left ---------------------------------------------------------------------------------


def held_snapshot():
    return HeldSnapshot(step=9, accuracy=60.0, alpha=1.0, digest="d" * 64)


def test_a_selecting_student_that_is_done_wants_nothing(tmp_path):
    plan = plan_of(sweep_of(tmp_path, DS))
    selecting = plan.units[-1]
    done = plan.subtract({selecting.name: Held(complete=True, horizon=400, evaluated=frozenset(
        selecting.request.evaluate_at))})  # fmt: skip
    assert done.left == []
    assert {unit.kind: done.work[unit.name].action for unit in plan.units[:-1]} == {
        "teacher": "unneeded", "student": "unneeded", "scores": "unneeded",
    }  # fmt: skip


def test_scores_that_are_there_need_nobody_who_scores(tmp_path):
    plan = plan_of(sweep_of(tmp_path, DS))
    scores = the(plan, "scores")
    left = plan.subtract({scores.name: Held(complete=True)})
    assert [unit.kind for unit in left.left] == ["teacher", "student"]
    assert left.left[-1].spec.selection is not None
    assert scores.name in left.held_tokens


def test_the_chain_behind_the_one_who_scores_counts(tmp_path):
    plan = plan_of(sweep_of(tmp_path, DS))
    scorer, selecting = plan.of_kind("student")
    assert plan.chains()[scorer.name] == 10 * EPOCH + selecting.request.horizon


def test_a_teacher_out_of_reach_blocks_who_selects_and_not_who_scores(tmp_path):
    plan = plan_of(sweep_of(tmp_path, DS))
    teacher = the(plan, "teacher")
    held = Held(complete=True, searched_to=100_000, missing=(60.0,))
    left = plan.subtract({teacher.name: held})
    scorer, selecting = plan.of_kind("student")
    assert left.work[selecting.name].action == "blocked"
    assert left.work[teacher.name].action == "exhausted"
    assert left.work[scorer.name].action in ("new", "unneeded")


def test_paths_of_scores():
    assert paths.scores_json("scores-0123456789abcdef").endswith("snapshots/scores.json")
    assert paths.scores_weights("scores-0123456789abcdef").endswith("scores.safetensors")


def test_a_scorer_is_told_by_the_labels_of_those_it_scores_for(tmp_path):
    spec = plan_of(sweep_of(tmp_path, DS)).of_kind("student")[1].spec
    other = dataclasses.replace(spec, selection=None)
    assert from_canonical(canonical(spec)) == spec
    assert canonical(other) == {k: v for k, v in canonical(spec).items() if k != "selection"}

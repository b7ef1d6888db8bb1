"""Student runs: events, rows, resumption bit for bit, bad losses."""

import copy
import itertools
import math
import pickle
from dataclasses import replace

import pytest
import torch
from training_helpers import (
    RUNTIME,
    StopAfter,
    a_teacher,
    assert_equal_states,
    final_state,
    image_data,
    losses,
    mapping,
    only,
    rows,
    run_student,
    soft_targets,
    state_bytes,
    student_spec,
)

from trainers.augment import normalise
from trainers.distributed import World
from trainers.engine import WINDOW, Engine
from trainers.errors import NonFiniteLossError, UnsuitableError
from trainers.evaluate import STUDENT_COLUMNS, TestSet, student_heads
from trainers.events import Checkpoint, Evaluation, Finished
from trainers.schedule import evaluation_steps
from trainers.spec import AUGMENTATIONS, AdamW, Augmentation, Backbone, Request, Runtime
from trainers.student import build_engine, train_student

DATA = image_data()


# -- events and rows ------------------------------------------------------------------------------


def test_a_run_yields_rows_a_checkpoint_and_an_end(tmp_path):
    given = mapping("B", tmp_path, DATA)
    events = run_student(student_spec("B"), DATA, 25, **given)
    evaluations = only(Evaluation, events)
    assert [event.row["step"] for event in evaluations] == [10, 20, 25]
    assert all(set(event.row) == set(STUDENT_COLUMNS) for event in evaluations)
    assert [event.step for event in only(Checkpoint, events)] == [25]
    assert events[-1] == Finished(reason="done", step=25)
    row = evaluations[-1].row
    assert row["count"] == 100
    assert row["top1_h"] == row["correct_h"] == 100 * row["correct_h"] / row["count"]
    assert row["epoch"] == 2.5
    assert row["wall_time_s"] > 0
    assert row["images_per_s"] > 0
    assert row["replayed"] is False


def test_requested_steps_are_evaluated_and_change_nothing_else():
    spec = student_spec("A")
    plain = run_student(spec, DATA, 20)
    asked = list(train_student(spec, DATA, Request(horizon=20, evaluate_at=(3, 13)), RUNTIME))
    assert [row["step"] for row in rows(asked)] == [3, 10, 13, 20]
    assert [row for row in rows(asked) if row["step"] not in (3, 13)] == rows(plain)
    assert_equal_states(final_state(asked), final_state(plain))


def test_reported_means_are_those_of_the_steps_since_the_last_window(tmp_path):
    spec = student_spec("A", augmentation=Augmentation())
    horizon = WINDOW + 4
    engine = build_engine(spec, DATA, RUNTIME, World())
    recorded = []
    objective = engine.objective

    def recording(model, batch):
        loss, means = objective(model, batch)
        recorded.append({name: value.item() for name, value in means.items()})
        return loss, means

    engine.objective = recording
    for _ in range(horizon):
        engine.update()
        if engine.step in (10, WINDOW, horizon):
            since = 0 if engine.step <= WINDOW else WINDOW
            for name, mean in engine.means().items():
                values = [means[name] for means in recorded[since:]]
                assert mean == pytest.approx(sum(values) / len(values)), (name, engine.step)


def test_means_of_a_constructed_batch(tmp_path):
    """target_entropy and teacher_agreement against the definition."""
    targets = soft_targets(tmp_path, DATA, a_teacher(DATA))
    engine = build_engine(student_spec("C"), DATA, RUNTIME, World(), targets=targets)
    batch = engine.batches.batch(0)
    with torch.no_grad():
        _, means = engine.objective(engine.model, batch)
        projection, _ = engine.model(batch.views)
    y = targets.rows(batch.samples_N).double()
    assert means["target_entropy"].item() == pytest.approx(
        float(-(y * y.log()).sum(1).mean()), rel=1e-5
    )
    agreed = (projection.argmax(1) == y.argmax(1)).double().mean()
    assert means["teacher_agreement"].item() == pytest.approx(float(agreed))


def test_evaluation_counts_the_whole_test_set_in_evaluation_mode():
    data = image_data(num_test=37)
    engine = build_engine(student_spec("A"), data, RUNTIME, World())
    losses(engine, 3)
    tests = TestSet(
        data.test_images, data.test_labels, data.info.mean, data.info.std,
        world=World(), precision="fp32",
    )  # fmt: skip
    before = engine.state_dict()
    right_h, right_g = tests.correct(engine.model, student_heads)
    assert engine.model.training
    assert_equal_states(before, engine.state_dict())  # evaluation moves no statistics
    views = normalise(data.test_images, data.info.mean, data.info.std)
    with torch.no_grad():
        g, h = engine.model.eval()(views)
    assert right_g == int((g.argmax(1) == data.test_labels).sum())
    assert right_h == int((h.argmax(1) == data.test_labels).sum())


def test_the_last_row_is_what_the_last_checkpoint_scores():
    events = run_student(student_spec("A"), DATA, 20)
    engine = build_engine(student_spec("A", seed=9), DATA, RUNTIME, World())
    engine.load_state_dict(final_state(events))
    views = normalise(DATA.test_images, DATA.info.mean, DATA.info.std)
    with torch.no_grad():
        g, h = engine.model.eval()(views)
    row = rows(events)[-1]
    assert row["correct_h"] == int((h.argmax(1) == DATA.test_labels).sum())
    assert row["correct_g"] == int((g.argmax(1) == DATA.test_labels).sum())


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
def test_a_strategy_refuses_what_is_not_its_own(strategy, tmp_path):
    teacher = a_teacher(DATA)
    both = {"teacher": teacher, "targets": soft_targets(tmp_path, DATA, teacher)}
    right = {"A": set(), "B": {"teacher"}, "C": {"targets"}}[strategy]
    for names in itertools.chain.from_iterable(
        itertools.combinations(both, size) for size in range(3)
    ):
        if set(names) != right:
            with pytest.raises(UnsuitableError, match=f"strategy {strategy}"):
                build_engine(
                    student_spec(strategy), DATA, RUNTIME, World(),
                    **{name: both[name] for name in names},
                )  # fmt: skip


# -- resumption -----------------------------------------------------------------------------------

MOBILE = Backbone(name="mobilenet_v2")
CASES = {
    "A std": (student_spec("A"), 30, (3, 1, 17)),
    "A mixup": (student_spec("A", augmentation=AUGMENTATIONS["mixup"]), 25, (9, 1, 1)),
    "B cutmix": (student_spec("B", augmentation=AUGMENTATIONS["cutmix"]), 25, (10, 4)),
    "C std": (student_spec("C"), 25, (1, 1, 20)),
    "C mixup": (student_spec("C", augmentation=AUGMENTATIONS["mixup"]), 70, (63, 1, 1)),
    "C ipc below a batch": (student_spec("C", ipc=1, batch_size=24), 25, (7, 11)),
    "A joint": (student_spec("A", loss="joint"), 22, (5,)),
    "A ghost norm": (student_spec("A", norm_batch=5), 22, (5,)),
    "B bf16": (student_spec("B", precision="bf16"), 22, (5, 6)),
    "A dropout": (student_spec("A", backbone=MOBILE, ipc=2), 6, (2, 1)),
    "A past a window": (student_spec("A", augmentation=Augmentation()), 103, (97, 2, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_equals_an_uninterrupted_one(case, tmp_path):
    spec, horizon, stops = CASES[case]
    given = mapping(spec.strategy, tmp_path, DATA)
    torch.manual_seed(1)
    whole = run_student(spec, DATA, horizon, **given)
    torch.manual_seed(123)  # a resumed process has another global state
    parts = run_student(spec, DATA, horizon, stops=stops, **given)
    assert rows(parts) == rows(whole)
    assert_equal_states(final_state(parts), final_state(whole))
    assert [event.step for event in only(Checkpoint, parts)] == [
        *itertools.accumulate(stops),
        horizon,
    ]


@pytest.mark.parametrize("horizon", [1, 12, 20])
def test_a_prefix_equals_the_longer_runs_prefix(horizon):
    spec = student_spec("A", augmentation=AUGMENTATIONS["cutmix"])
    every = Runtime(checkpoint_every_s=0.0)
    longer = run_student(spec, DATA, 30, runtime=every)
    shorter = run_student(spec, DATA, horizon)
    standard = set(evaluation_steps(30, 10))
    assert [row for row in rows(shorter) if row["step"] in standard] == [
        row for row in rows(longer) if row["step"] <= horizon
    ]
    state = next(event.state for event in only(Checkpoint, longer) if event.step == horizon)
    assert_equal_states(state, final_state(shorter))


def test_a_finished_run_is_continued_to_a_longer_horizon():
    spec = student_spec("A")
    state = final_state(run_student(spec, DATA, 15))
    longer = list(train_student(spec, DATA, Request(horizon=25), RUNTIME, state=state))
    assert_equal_states(final_state(longer), final_state(run_student(spec, DATA, 25)))
    again = list(
        train_student(spec, DATA, Request(horizon=15), RUNTIME, state=state)
    )  # nothing left to do
    assert again == [Finished(reason="done", step=15)]


def test_a_checkpoint_is_a_copy_that_later_steps_leave_alone():
    runtime = Runtime(checkpoint_every_s=0.0)
    events = train_student(student_spec("A"), DATA, Request(horizon=4), runtime)
    first = next(event for event in events if isinstance(event, Checkpoint))
    taken = state_bytes(first.state)
    list(events)
    assert state_bytes(first.state) == taken


def test_a_state_that_was_resumed_from_can_be_resumed_from_again():
    spec = student_spec("A")
    state = final_state(run_student(spec, DATA, 5))
    taken = state_bytes(state)
    list(train_student(spec, DATA, Request(horizon=10), RUNTIME, state=state))
    assert state_bytes(state) == taken


def test_moments_that_were_saved_in_another_layout_take_that_of_the_weights():
    spec = student_spec("A")
    state = final_state(run_student(spec, DATA, 3))
    other = copy.deepcopy(state)
    for moments in other["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].contiguous()
    engines = [build_engine(spec, DATA, RUNTIME, World()) for _ in range(2)]
    relaid = []
    for engine, saved in zip(engines, (state, other), strict=True):
        engine.load_state_dict(saved)
        assert_equal_states(engine.state_dict(), state)
        relaid.append(0)
        for number, parameter in enumerate(engine.model.parameters()):
            for name in ("exp_avg", "exp_avg_sq"):
                before = saved["optimizer"]["state"][number][name]
                assert engine._optimizer.state[parameter][name].stride() == parameter.stride()
                relaid[-1] += before.stride() != parameter.stride()
        for _ in range(3):
            engine.update()
    assert relaid[0] == 0 < relaid[1]  # an engine's own state has the layout already
    assert_equal_states(*[engine.state_dict() for engine in engines])


def test_stop_at_the_horizon_is_no_interruption():
    events = train_student(student_spec("A"), DATA, Request(horizon=5), RUNTIME, stop=StopAfter(5))
    assert list(events)[-1] == Finished(reason="done", step=5)


def test_the_number_of_threads_is_one_unless_told():
    torch.set_num_threads(2)
    run_student(student_spec("A"), DATA, 1)
    assert torch.get_num_threads() == 1
    run_student(student_spec("A"), DATA, 1, runtime=replace(RUNTIME, threads=2))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


# -- losses that are not finite -------------------------------------------------------------------


def poisoned(engine: Engine, step: int) -> Engine:
    """The loss of `step` is NaN, without spoiling a weight: later losses are finite again."""
    objective = engine.objective

    def bad(model, batch):
        loss, means = objective(model, batch)
        return (loss + math.nan if engine.step + 1 == step else loss), means

    engine.objective = bad
    return engine


@pytest.mark.parametrize("bad_step", [1, 7, 10])
def test_the_first_bad_step_is_named(bad_step):
    engine = poisoned(build_engine(student_spec("A"), DATA, RUNTIME, World()), bad_step)
    for _ in range(10):
        engine.update()
    with pytest.raises(NonFiniteLossError, match=f"step {bad_step}") as caught:
        engine.means()
    assert caught.value.step == bad_step
    assert pickle.loads(pickle.dumps(caught.value)).step == bad_step


def explosive(**changes):
    return student_spec("A", optimizer=AdamW(lr=1e30, weight_decay=0.01), **changes)


def test_a_run_that_explodes_ends_with_an_error_and_no_row():
    events = train_student(explosive(), DATA, Request(horizon=30), RUNTIME)
    seen = []
    with pytest.raises(NonFiniteLossError) as caught:
        seen.extend(events)
    assert 2 <= caught.value.step <= 10
    assert not only(Evaluation, seen)


def test_spoilt_weights_are_never_checkpointed():
    every = Runtime(checkpoint_every_s=0.0)
    seen = []
    with pytest.raises(NonFiniteLossError) as caught:
        seen.extend(train_student(explosive(), DATA, Request(horizon=30), every))
    assert [event.step for event in only(Checkpoint, seen)] == list(range(1, caught.value.step))
    with pytest.raises(NonFiniteLossError):
        list(
            train_student(
                explosive(), DATA, Request(horizon=30), RUNTIME, stop=StopAfter(caught.value.step)
            )
        )

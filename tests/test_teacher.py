"""Teacher runs: the harvest rule, bisection, screening, resumption."""

import itertools
from dataclasses import replace

import pytest
import torch
from training_helpers import (
    RUNTIME,
    StopAfter,
    assert_equal_states,
    final_state,
    image_data,
    only,
    rows,
    run_interrupted,
    teacher_spec,
)

from trainers.augment import normalise
from trainers.checkpoint import dump_weights, parse_weights, weights_digest
from trainers.errors import NonFiniteLossError
from trainers.evaluate import TEACHER_COLUMNS
from trainers.events import Checkpoint, Evaluation, Finished, Snapshot
from trainers.harvest import MAX_HALVINGS
from trainers.models import build_teacher
from trainers.presets import STANDARD_PRESETS
from trainers.spec import AUGMENTATIONS, AdamW, Backbone, Request, Runtime
from trainers.teacher import train_teacher

DATA = image_data(noise=30, num_test=400)
BACKBONE = Backbone(name="resnet18", width=4)
SPEC = teacher_spec(backbone=BACKBONE, optimizer=AdamW(lr=1e-2, weight_decay=0.01))
"""Reaches 90% after 33 steps and jumps over a few windows on the way."""


def train(spec=SPEC, data=DATA, *, stops=(), runtime=RUNTIME, harvested=frozenset(), **request):
    asked = Request(**{"horizon": 60, "presets": (90.0,), **request})
    taken = set(harvested)

    def attempt(state, stop):
        events = list(
            train_teacher(
                spec, data, asked, runtime, harvested=frozenset(taken), state=state, stop=stop
            )
        )
        taken.update(event.preset for event in only(Snapshot, events))
        return events

    return run_interrupted(attempt, stops)


def summary(events):
    """Everything about the snapshots, in the order they were found."""
    return [
        (s.preset, s.step, s.accuracy, s.alpha, weights_digest(dump_weights(s.weights)))
        for s in only(Snapshot, events)
    ]


def accuracy_of(weights, data=DATA, backbone=BACKBONE):
    """Top-1 on the whole test set, without the trainer's evaluation."""
    model = build_teacher(
        backbone, image_size=data.info.image_size, num_classes=data.info.num_classes, seed=99
    )
    model.load_state_dict(parse_weights(dump_weights(weights)))
    with torch.no_grad():
        logits = model.eval()(normalise(data.test_images, data.info.mean, data.info.std))
    return 100 * (logits.argmax(1) == data.test_labels).double().mean().item()


@pytest.fixture(scope="module")
def run():
    """A run with a checkpoint after every step."""
    return train(runtime=Runtime(checkpoint_every_s=0.0))


# -- the harvest rule -----------------------------------------------------------------------------


def test_every_snapshot_scores_its_preset_on_the_whole_test_set(run):
    snapshots = only(Snapshot, run)
    assert len(snapshots) >= 10
    assert any(snapshot.alpha < 1 for snapshot in snapshots)
    for snapshot in snapshots:
        assert abs(accuracy_of(snapshot.weights) - snapshot.preset) <= 1
        assert accuracy_of(snapshot.weights) == pytest.approx(snapshot.accuracy)


def test_snapshots_obey_the_rule_recomputed_from_the_trace(run):
    """First validated state inside the window; where two states lie on either side of it, a point
    of the segment between their weights."""
    trace = [(row["step"], row["correct"] / 4) for row in rows(run)]
    weights = {event.step: event.state["model"] for event in only(Checkpoint, run)}
    found = {snapshot.preset: snapshot for snapshot in only(Snapshot, run)}
    assert [step for step, _ in trace] == list(range(len(trace)))
    for preset in STANDARD_PRESETS:
        inside = [step for step, top1 in trace if preset - 1 <= top1 <= preset + 1]
        jumps = [
            step
            for (_, before), (step, after) in itertools.pairwise(trace)
            if (before < preset - 1 and after > preset + 1)
            or (before > preset + 1 and after < preset - 1)
        ]
        first = min(inside + jumps, default=None)
        if first is None:
            assert preset not in found
            continue
        snapshot = found.pop(preset)
        assert snapshot.step == first
        if first in inside:
            assert snapshot.alpha == 1.0
            expected = weights[first] if first else None
        else:
            assert 0 < snapshot.alpha < 1
            assert (snapshot.alpha * 2**MAX_HALVINGS).is_integer()
            before, after = weights[first - 1], weights[first]
            expected = {
                name: before[name] + snapshot.alpha * (value - before[name])
                if value.is_floating_point()
                else value
                for name, value in after.items()
            }
        for name, value in (expected or {}).items():
            torch.testing.assert_close(snapshot.weights[name], value)
    assert not found


def test_the_initialisation_counts_as_validated():
    events = train(presets=(12.0,))
    snapshot = only(Snapshot, events)[0]
    assert (snapshot.preset, snapshot.step, snapshot.alpha) == (12.0, 0, 1.0)
    fresh = build_teacher(BACKBONE, image_size=8, num_classes=10, seed=0)
    assert_equal_states(dict(snapshot.weights), dict(fresh.state_dict()))
    assert [row["step"] for row in rows(events)] == [0]
    assert events[-1] == Finished(reason="done", step=0)


@pytest.mark.parametrize("screen", [None, 100, "adaptive"])
def test_a_preset_above_chance_is_a_trained_net(screen):
    """CIFAR-100's 2% teacher: with 100 classes an untrained net has 1%, inside [1, 3]."""
    data = image_data(num_train=400, num_test=800, num_classes=100, noise=30)
    events = train(replace(SPEC, seed=8), data, presets=(2.0,), screen=screen)
    (snapshot,) = (one for one in only(Snapshot, events) if one.preset == 2.0)
    assert rows(events)[0]["top1"] == 1.0
    assert snapshot.step > 0
    assert 1.5 <= snapshot.accuracy <= 3.0


def test_a_row_a_validated_step_and_a_kept_checkpoint_per_ten_points(run):
    evaluations = only(Evaluation, run)
    assert all(set(event.row) == set(TEACHER_COLUMNS) for event in evaluations)
    assert all(event.row["count"] == 400 for event in evaluations)
    assert all(event.row["top1"] == event.row["correct"] / 4 for event in evaluations)
    assert rows(run)[0]["train_ce"] is None
    assert rows(run)[1]["train_ce"] > 0
    kept = {event.keep_as: event.step for event in only(Checkpoint, run) if event.keep_as}
    tens = {f"{s.preset:g}": s.step for s in only(Snapshot, run) if s.preset % 10 == 0}
    assert kept == tens
    # The row that shows why comes before the snapshot, the snapshot before its checkpoint.
    for index, event in enumerate(run):
        if isinstance(event, Snapshot):
            shown = [other for other in run[:index] if isinstance(other, Evaluation)]
            assert shown[-1].row["step"] == event.step


def test_the_search_ends_with_what_was_asked():
    events = train(presets=(50.0, 20.0))
    assert {s.preset for s in only(Snapshot, events)} >= {20.0, 50.0}
    assert events[-1].reason == "done"
    assert events[-1].step == max(s.step for s in only(Snapshot, events))
    assert isinstance(events[-2], Checkpoint)


def test_an_unreachable_preset_exhausts_the_search():
    events = train(presets=(20.0, 100.0, 2.0), horizon=12)
    assert events[-1] == Finished(reason="exhausted", step=12, missing=(2.0, 100.0))
    assert rows(events)[-1]["step"] == 12


def test_presets_the_store_has_are_not_harvested_again(run):
    first = summary(run)
    have = frozenset(preset for preset, *_ in first if preset < 60)
    again = summary(train(harvested=have))
    assert again == [entry for entry in first if entry[0] not in have]
    nothing = train(harvested=frozenset({90.0}))
    assert nothing[-1] == Finished(reason="done", step=0)


# -- validation -----------------------------------------------------------------------------------


def test_validate_every_sees_only_those_steps():
    events = train(validate_every=5)
    assert all(row["step"] % 5 == 0 for row in rows(events))
    assert all(s.step % 5 == 0 for s in only(Snapshot, events))
    assert sum(s.alpha < 1 for s in only(Snapshot, events)) >= 5
    for snapshot in only(Snapshot, events):
        assert abs(accuracy_of(snapshot.weights) - snapshot.preset) <= 1


def test_where_a_search_ends_decides_nothing():
    """A shorter limit gives a prefix: its last step is validated only where the rule says so."""
    longer = train(validate_every=5)
    shorter = train(validate_every=5, horizon=22)
    assert rows(shorter) == [row for row in rows(longer) if row["step"] <= 20]
    assert summary(shorter) == [entry for entry in summary(longer) if entry[1] <= 20]
    assert shorter[-1] == Finished(reason="exhausted", step=22, missing=(90.0,))
    assert final_state(shorter)["step"] == 22


@pytest.mark.parametrize("screen", [40, 100])
def test_screening_finds_the_same_snapshots_or_later_ones(screen, run):
    events = train(screen=screen)
    plain = {snapshot.preset: snapshot for snapshot in only(Snapshot, run)}
    screened = {snapshot.preset: snapshot for snapshot in only(Snapshot, events)}
    assert events[-1].reason == "done"
    for preset, snapshot in screened.items():
        assert abs(accuracy_of(snapshot.weights) - preset) <= 1
        assert snapshot.step >= plain[preset].step
    by_step = {row["step"]: row for row in rows(run)}
    assert all(row == by_step[row["step"]] for row in rows(events))


def test_screening_spares_validations_far_from_every_preset():
    wanted = (90.0,)
    standard = frozenset(STANDARD_PRESETS) - {*wanted}
    events = train(screen=100, presets=wanted, harvested=standard)
    assert 1 < len(rows(events)) < events[-1].step
    assert [s.preset for s in only(Snapshot, events)] == [90.0]


def test_screening_a_jump_that_starts_at_the_initialisation():
    """The first validation is compared with step 0."""
    fast = teacher_spec(backbone=BACKBONE, optimizer=AdamW(lr=1e-2, weight_decay=0.01))
    others = frozenset(STANDARD_PRESETS) - {40.0}
    request = {"presets": (40.0,), "harvested": others, "validate_every": 20}
    plain, screened = train(fast, **request), train(fast, screen=380, **request)
    assert summary(plain) == summary(screened)
    assert [(s.step, s.alpha < 1) for s in only(Snapshot, screened)] == [(20, True)]


# -- resumption -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_changes", "stops"),
    [
        ({}, (1, 9, 3)),
        ({"validate_every": 5}, (3, 4, 8, 3)),
        ({"screen": 100}, (2, 8, 1, 7)),
        ({"screen": 100, "validate_every": 3}, (2, 8, 1, 7)),
    ],
    ids=["every step", "every fifth", "screened", "screened, every third"],
)
def test_an_interrupted_search_equals_an_uninterrupted_one(request_changes, stops):
    whole = train(**request_changes)
    torch.manual_seed(5)
    parts = train(stops=stops, **request_changes)
    assert rows(parts) == rows(whole)
    assert summary(parts) == summary(whole)
    assert_equal_states(final_state(parts), final_state(whole))
    assert any(s.alpha < 1 for s in only(Snapshot, whole))
    assert parts[-1] == whole[-1]


def test_a_checkpoint_holds_what_later_validations_cannot_change():
    """It may be written while the search goes on."""
    events = train(validate_every=3, horizon=9, runtime=Runtime(checkpoint_every_s=0.0))
    states = [event.state for event in only(Checkpoint, events)]
    at = {state["step"]: state for state in states}
    for step in (4, 5):
        assert at[step]["validated"]["step"] == 3
        assert_equal_states(at[step]["validated"]["weights"], at[3]["model"])


def test_an_augmented_search_resumes_bit_for_bit():
    spec = teacher_spec(augmentation=AUGMENTATIONS["cutmix"], batch_size=30)
    whole = train(spec, horizon=14)
    parts = train(spec, horizon=14, stops=(6, 1))
    assert rows(parts) == rows(whole)
    assert summary(parts) == summary(whole)
    assert_equal_states(final_state(parts), final_state(whole))


def test_a_preset_asked_later_is_found_from_a_kept_checkpoint(run):
    """As the worker does: from the nearest state before the step, with what is there not asked."""
    kept = {event.keep_as: event for event in only(Checkpoint, run) if event.keep_as}
    events = list(
        train_teacher(
            SPEC, DATA, Request(horizon=60, presets=(75.0,)), RUNTIME,
            harvested=frozenset(s.preset for s in only(Snapshot, run)), state=kept["40"].state,
        )
    )  # fmt: skip
    by_step = {row["step"]: row for row in rows(run)}
    assert rows(events)[0]["step"] == kept["40"].step + 1
    assert all(row == by_step[row["step"]] for row in rows(events))
    straight = train(presets=(75.0,))
    assert summary(events) == [entry for entry in summary(straight) if entry[0] == 75.0]


def test_a_stop_at_the_last_wanted_preset_is_no_interruption(run):
    last = max(s.step for s in only(Snapshot, run))
    request = Request(horizon=60, presets=(90.0,))
    events = list(train_teacher(SPEC, DATA, request, RUNTIME, stop=StopAfter(last)))
    assert events[-1] == Finished(reason="done", step=last)


def test_a_teacher_without_batch_norm():
    """It has no buffer, let alone one that counts."""
    backbone = Backbone(name="vit_tiny", stem="standard")
    spec = teacher_spec(backbone=backbone, optimizer=AdamW(lr=1e-3, weight_decay=0.01))
    found = only(Snapshot, train(spec, presets=(30.0,), horizon=60))
    assert found
    for snapshot in found:
        assert accuracy_of(snapshot.weights, backbone=backbone) == pytest.approx(snapshot.accuracy)


@pytest.mark.parametrize("changes", [{}, {"screen": 50}, {"validate_every": 4}])
def test_a_teacher_that_explodes_ends_with_an_error(changes):
    spec = teacher_spec(optimizer=AdamW(lr=1e30, weight_decay=0.01))
    request = Request(**{"horizon": 60, "presets": (90.0,), **changes})
    never = StopAfter(1_000)
    with pytest.raises(NonFiniteLossError) as caught:
        list(train_teacher(spec, DATA, request, RUNTIME, stop=never))
    trained = 1_000 - never.left  # it asks after every step
    assert 2 <= caught.value.step <= trained + 1 <= caught.value.step + 4  # no aimless search

"""Adaptive screening: what is ruled out from a part of the test set, and that it costs lateness at
most: never a snapshot outside its window, never another one after an interruption."""

import math

import numpy as np
import pytest
import torch
from test_teacher import SPEC, accuracy_of, summary, train
from torch import nn
from training_helpers import (
    assert_equal_states,
    final_state,
    image_data,
    only,
    rows,
    state_bytes,
)

from trainers.checkpoint import parse_state
from trainers.distributed import World
from trainers.evaluate import TestSet
from trainers.events import Checkpoint, Snapshot
from trainers.harvest import in_window
from trainers.presets import STANDARD_PRESETS
from trainers.screening import (
    FIRST_LOOK,
    AdaptiveScreen,
    Level,
    Look,
    look_sizes,
)
from trainers.spec import Request, Runtime
from trainers.teacher import train_teacher
from trainers.validation import Validator

DATA = image_data(noise=30, num_test=2000)
NO_PRESETS = frozenset(STANDARD_PRESETS)


def search(**request):
    return train(data=DATA, **{"screen": "adaptive", **request})


@pytest.fixture(scope="module")
def exact():
    """To the end of its steps."""
    return search(screen=None, presets=(90.0, 100.0))


@pytest.fixture(scope="module")
def adaptive():
    """With a checkpoint after every step."""
    return search(runtime=Runtime(checkpoint_every_s=0.0))


# -- looks ----------------------------------------------------------------------------------------


def test_looks_double_up_to_a_quarter_and_small_test_sets_have_none():
    assert look_sizes(10_000) == (125, 250, 500, 1000, 2000)
    assert look_sizes(50_000)[-1] <= 12_500 < 2 * look_sizes(50_000)[-1]
    assert look_sizes(4 * FIRST_LOOK - 1) == ()


def test_a_look_knows_less_the_more_of_the_set_is_unseen():
    look = Look.of(60, 100, 400)
    assert look.accuracy == 60
    assert look.variance == pytest.approx(100**2 * 0.6 * 0.4 / 100 * 0.75)
    assert Look.of(60, 100, 100).variance == 0
    assert Look.of(0, 100, 400).variance > 0


def test_level_and_look_are_joined_as_two_normal_measurements():
    """Against the textbook's precision-weighted mean."""
    level, look = Level(40.0, 4.0), Look(46.0, 16.0)
    mean, deviation = level.joined(look)
    precision = 1 / 4 + 1 / 16
    assert mean == pytest.approx((40 / 4 + 46 / 16) / precision)
    assert deviation == pytest.approx(math.sqrt(1 / precision))


def test_a_look_that_contradicts_the_level_counts_alone():
    level, look = Level(40.0, 4.0), Look(49.1, 16.0)
    assert level.joined(look) == (pytest.approx(49.1), pytest.approx(4.0))
    assert level.joined(Look(48.9, 16.0))[0] == pytest.approx(41.78)


def test_the_level_follows_and_its_variance_becomes_that_of_the_states():
    rng = np.random.default_rng(0)
    level = Level(10.0)
    for accuracy in rng.normal(60, 3, 2000):
        level.include(Look(accuracy + rng.normal(0, 4), 16.0))
    assert level.mean == pytest.approx(60, abs=4)
    assert level.variance == pytest.approx(9, rel=0.6)
    for _ in range(2000):
        level.include(Look(60.0, 16.0))
    assert (level.mean, level.variance) == (pytest.approx(60.0), 1.0)


# -- the screen, on a model whose accuracy is told ------------------------------------------------


class Told(nn.Module):
    """Right on the first `right` of its images: an image is its own number."""

    def __init__(self, right=0):
        super().__init__()
        self.right = right

    def forward(self, views):
        number = (views[:, 0, 0, 0] * 255 + views[:, 1, 0, 0] * 255 * 256).round()
        return torch.stack([number < self.right, number >= self.right], 1).float()


class Counting(TestSet):
    """Counts the images it was asked about, also by its parts."""

    asked = [0]  # noqa: RUF012 - shared with the parts on purpose

    def correct(self, model, heads):
        self.asked[0] += self.count
        return super().correct(model, heads)


def told_set(count=10_000):
    numbers = torch.arange(count)
    images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = numbers % 256, numbers // 256
    labels = torch.zeros(count, dtype=torch.int64)
    return Counting(images, labels, (0.0,) * 3, (1.0,) * 3, world=World(), precision="fp32")


def watch(accuracies, presets, count=10_000):
    """Verdicts and images of validations whose accuracies (percent) are told, as long as presets
    are missing."""
    whole = told_set(count)
    validator = Validator(whole, AdaptiveScreen(whole, 10))
    first, *others = accuracies
    missing = set(presets)
    validator.screen.start(Told(), 0, first, missing)
    found = []
    for turn, accuracy in enumerate(others, 1):
        whole.asked[0] = 0
        verdict = validator.validate(Told(round(accuracy * count / 100)), turn, missing)
        found.append((verdict, whole.asked[0]))
        if verdict is not None:
            missing -= {p for p in verdict.presets if in_window(verdict.accuracy, p, 10)}
        if not missing:
            break
    return found


def test_far_from_every_preset_a_look_or_two_will_do():
    found = watch([45.0] * 60, {2.0, 80.0})
    assert all(verdict is None for verdict, _ in found)
    assert all(images <= 500 for _, images in found)
    assert np.mean([images for _, images in found[20:]]) < 1.5 * FIRST_LOOK


def test_inside_a_window_the_whole_set_decides():
    verdict, images = watch([45.0] * 20 + [50.4] * 5, {50.0})[-1]
    assert images == 2000 + 10_000
    assert verdict.accuracy == 50.4
    assert (verdict.presets, verdict.jumps) == ({50.0}, False)


def test_near_a_window_the_whole_set_may_say_no():
    found = [verdict for verdict, _ in watch([48.6] * 40, {50.0}) if verdict is not None]
    assert found
    assert all(verdict.presets == frozenset() and not verdict.jumps for verdict in found)


@pytest.mark.parametrize(("before", "after"), [(30.0, 70.0), (70.0, 30.0)])
def test_a_jump_is_seen(before, after):
    *quiet, (verdict, _) = watch([before] * 30 + [after], {50.0})
    assert all(seen is None for seen, _ in quiet)
    assert (verdict.presets, verdict.jumps) == ({50.0}, True)


def test_the_first_validation_is_compared_with_the_initialisation():
    ((verdict, _),) = watch([10.0, 70.0], {50.0, 5.0})
    assert (verdict.presets, verdict.jumps) == ({50.0}, True)


def test_successive_validations_look_at_other_images_until_all_were_used():
    whole = told_set(1000)
    screen = AdaptiveScreen(whole, 10)
    seen = []

    class Rows(nn.Module):
        def forward(self, views):
            seen.append((views[:, 0, 0, 0] * 255 + views[:, 1, 0, 0] * 255 * 256).round().tolist())
            return torch.zeros(len(views), 2)

    screen.start(Rows(), 0, 100.0, {50.0})
    for turn in range(1, 9):
        screen.suspects(Rows(), turn, {50.0})
    first = [rows for rows in seen if len(rows) == FIRST_LOOK]
    assert len({int(number) for rows in first[:8] for number in rows}) >= 900
    assert look_sizes(1000) == (125, 250)


def test_what_is_missing_besides_changes_no_decision():
    """A snapshot must not depend on what else was asked: of the same states, a preset is suspected
    at the same ones, whoever keeps it company."""
    rng = np.random.default_rng(1)
    accuracies = [10.0, *np.clip(np.linspace(12, 60, 120) + rng.normal(0, 1.5, 120), 0, 100)]
    alone = watch(accuracies, {40.0})
    company = watch(accuracies, {12.0, 28.0, 38.5, 40.0, 90.0})
    mine = [verdict is not None and 40.0 in verdict.presets for verdict, _ in alone]
    theirs = [verdict is not None and 40.0 in verdict.presets for verdict, _ in company]
    assert any(mine)
    assert theirs[: len(mine)] == mine
    assert not any(theirs[len(mine) :])


def test_crossings_are_rarely_passed_by():
    """First states inside a window, over drawn searches: found then, or at a later state."""
    found = missed = images = validations = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        steps = np.arange(300)
        curve = 10 + 60 * (1 - np.exp(-steps / 90)) + rng.normal(0, 1.2, 300) * (steps > 0)
        inside = {p: np.flatnonzero(np.abs(curve - p) <= 1) for p in (30.0, 60.0)}
        trace = watch(curve, {30.0, 60.0})
        for preset, steps_inside in inside.items():
            verdict = trace[steps_inside[0] - 1][0] if steps_inside[0] <= len(trace) else None
            is_seen = verdict is not None and preset in verdict.presets
            found, missed = found + is_seen, missed + (not is_seen)
        images += sum(asked for _, asked in trace)
        validations += len(trace)
    assert missed <= found / 4
    assert images / validations < 10_000 / 3


# -- a search -------------------------------------------------------------------------------------


def test_every_snapshot_scores_its_preset_on_the_whole_test_set(exact, adaptive):
    at = {s.preset: s.step for s in only(Snapshot, exact)}
    snapshots = only(Snapshot, adaptive)
    assert 90.0 in {s.preset for s in snapshots} <= at.keys()
    for snapshot in snapshots:
        assert accuracy_of(snapshot.weights, DATA) == pytest.approx(snapshot.accuracy)
        assert abs(snapshot.accuracy - snapshot.preset) <= 1
        assert snapshot.step >= at[snapshot.preset]


def test_rows_are_those_of_an_exact_search_and_fewer(exact, adaptive):
    by_step = {row["step"]: row for row in rows(exact)}
    assert all(row == by_step[row["step"]] for row in rows(adaptive))
    assert len(rows(adaptive)) < len(rows(exact))


def test_what_else_is_asked_changes_no_snapshot(adaptive):
    alone = search(presets=(60.0,), harvested=NO_PRESETS - {60.0})
    (mine,) = summary(alone)
    assert mine in summary(adaptive)
    assert len(rows(alone)) < len(rows(adaptive))


def test_a_preset_asked_later_is_the_one_that_would_have_been_found(adaptive):
    """As the worker does: from a kept checkpoint, with what is there not asked."""
    kept = {event.keep_as: event for event in only(Checkpoint, adaptive) if event.keep_as}
    harvested = frozenset(s.preset for s in only(Snapshot, adaptive))
    events = list(
        train_teacher(
            SPEC, DATA, Request(horizon=60, presets=(75.0,), screen="adaptive"),
            Runtime(checkpoint_every_s=1e9), harvested=harvested,
            state=parse_state(state_bytes(kept["40"].state)),
        )
    )  # fmt: skip
    straight = summary(search(presets=(75.0, 90.0)))
    assert summary(events) == [entry for entry in straight if entry[0] == 75.0] != []


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        pytest.param({}, (1, 9, 3), id="every step", marks=pytest.mark.slow),
        pytest.param({"validate_every": 3}, (2, 8, 1, 7), id="every third"),
    ],
)
def test_an_interrupted_search_equals_an_uninterrupted_one(changes, stops):
    whole = search(**changes)
    torch.manual_seed(5)
    parts = search(stops=stops, **changes)
    assert rows(parts) == rows(whole)
    assert summary(parts) == summary(whole)
    assert_equal_states(final_state(parts), final_state(whole))
    assert parts[-1] == whole[-1]


def test_a_small_test_set_is_validated_whole():
    small = image_data(noise=30, num_test=400)
    plain, screened = train(data=small), train(data=small, screen="adaptive")
    assert rows(plain) == rows(screened)
    assert summary(plain) == summary(screened)

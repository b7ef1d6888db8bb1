"""The harvester between two states, on a model whose accuracy is a function of one weight."""

import pytest
import torch
from torch import nn

from trainers.harvest import MAX_HALVINGS, Harvester, in_window, interpolate, jumped_over
from trainers.presets import least_trained


class Dial(nn.Module):
    """One weight, one batch-norm."""

    def __init__(self, weight=0.0, mean=0.0, count=0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.norm = nn.BatchNorm2d(1)
        self.norm.running_mean.fill_(mean)
        self.norm.num_batches_tracked.fill_(count)


class Curve:
    """A test set on which a dial's accuracy is `percent_of(weight)`."""

    def __init__(self, percent_of, count=1000):
        self.percent_of = percent_of
        self.count = count
        self.asked = []

    def correct(self, model, heads):
        self.asked.append(model.weight.item())
        return [round(self.percent_of(model.weight.item()) * self.count / 100)]


def harvest(percent_of, before, after, presets):
    curve = Curve(percent_of)
    harvester = Harvester(Dial(), curve, set(presets), 10)
    old, new = Dial(before, mean=1.0, count=4), Dial(after, mean=2.0, count=5)
    found = harvester.find(
        5, old.state_dict(), percent_of(before), new.state_dict(), percent_of(after),
        harvester.missing,
    )  # fmt: skip
    return list(found), harvester, curve


def test_an_update_that_jumps_over_windows_is_bisected():
    found, harvester, _ = harvest(lambda w: 100 * w, 0.0, 1.0, {10.0, 50.0, 75.0, 100.0, 130.0})
    assert [(s.preset, s.alpha, s.accuracy) for s in found] == [
        (10.0, 0.09375, 9.4),  # 50, 25, 12.5, 6.25, 9.375
        (50.0, 0.5, 50.0),
        (75.0, 0.75, 75.0),
        (100.0, 1.0, 100.0),
    ]
    assert harvester.missing == {130.0}
    for snapshot in found:
        assert snapshot.step == 5
        assert snapshot.weights["weight"].item() == snapshot.alpha
        assert snapshot.weights["norm.running_mean"].item() == 1 + snapshot.alpha
        assert snapshot.weights["norm.num_batches_tracked"].item() == 5
        assert snapshot.weights["norm.num_batches_tracked"].dtype == torch.int64


def test_a_state_before_that_was_inside_is_taken_where_the_search_looks_back():
    before, after = Dial(0.3).state_dict(), Dial(0.6).state_dict()
    for looks_back, expected in ((True, [(30.0, 0.0, 30.0)]), (False, [])):
        harvester = Harvester(Dial(), Curve(lambda w: 100 * w), {30.0}, 10)
        found = harvester.find(5, before, 30.0, after, 60.0, {30.0}, looks_back=looks_back)
        assert [(s.preset, s.alpha, s.accuracy) for s in found] == expected


def test_a_fall_through_a_window_is_bisected_too():
    found, _, _ = harvest(lambda w: 90 - 80 * w, 0.0, 1.0, {30.0})
    assert [(s.alpha, s.accuracy) for s in found] == [(0.75, 30.0)]


def test_a_step_without_a_foothold_fails_after_eight_halvings_and_the_search_goes_on():
    def cliff(w):
        return 20.0 if w < 0.3 else 80.0

    found, harvester, curve = harvest(cliff, 0.0, 1.0, {50.0, 80.0})
    assert [s.preset for s in found] == [80.0]
    assert harvester.missing == {50.0}
    assert len(curve.asked) == MAX_HALVINGS == 8
    assert curve.asked[-1] == pytest.approx(0.3, abs=2**-8)  # it closed in on the cliff

    curve.percent_of = lambda w: 100 * w
    later = harvester.find(
        6, Dial(0.4).state_dict(), 40.0, Dial(0.495).state_dict(), 49.5, {50.0}
    )  # reached in the ordinary way
    assert [(s.preset, s.step, s.alpha) for s in later] == [(50.0, 6, 1.0)]
    assert not harvester.missing


def test_a_path_that_is_not_monotone_still_ends_inside_the_window():
    def bump(w):
        return 100 * w if w < 0.5 else 100 * w - 40 * (1 - w)

    found, _, _ = harvest(bump, 0.0, 1.0, {30.0, 60.0})
    for snapshot in found:
        assert in_window(snapshot.accuracy, snapshot.preset, 10)
        assert snapshot.accuracy == pytest.approx(bump(snapshot.alpha), abs=0.05)
    assert {s.preset for s in found} == {30.0, 60.0}


@pytest.mark.parametrize(
    ("before", "after", "jumped"),
    [
        (28.0, 32.0, True), (32.0, 28.0, True), (28.99, 31.01, True), (29.0, 32.0, False),
        (28.0, 31.0, False), (28.0, 30.0, False), (20.0, 28.0, False), (33.0, 50.0, False),
    ],
)  # fmt: skip
def test_what_a_jump_is(before, after, jumped):
    assert jumped_over(before, after, 30.0, 10) is jumped


def test_windows_include_their_ends_whatever_the_rounding():
    assert in_window(100 * 29 / 100, 30.0, 10)
    assert in_window(100 * 1131 / 10_000, 12.31, 10)
    assert not in_window(28.99, 30.0, 10)
    assert not in_window(31.01, 30.0, 10)


def test_interpolation_has_the_ends():
    old, new = Dial(0.0, 1.0, 4).state_dict(), Dial(8.0, 2.0, 5).state_dict()
    assert interpolate(old, new, 1.0)["weight"].item() == 8.0
    assert interpolate(old, new, 0.0)["weight"].item() == 0.0
    assert interpolate(old, new, 0.25)["norm.running_mean"].item() == 1.25
    assert old["weight"].item() == 0.0  # untouched


@pytest.mark.parametrize(
    ("preset", "num_classes", "least"),
    [
        (2.0, 100, 1.5),  # CIFAR-100: an untrained net has 1%
        (2.0, 200, None),  # Tiny-ImageNet: 0.5% is outside the window
        (10.0, 10, None),  # CIFAR-10: the paper's 10% teacher is untrained
        (9.5, 10, None),
        (10.5, 10, 10.25),
        (12.0, 10, None),
        (12.0, 1000, None),
    ],
)
def test_the_least_that_counts_where_chance_would(preset, num_classes, least):
    assert least_trained(preset, num_classes) == least
    low = preset - 1 if least is None else least
    assert in_window(low, preset, num_classes)
    assert not in_window(low - 0.01, preset, num_classes)
    assert in_window(preset + 1, preset, num_classes)
    assert jumped_over(low - 0.01, preset + 1.01, preset, num_classes)


def test_a_preset_above_chance_is_jumped_over_from_chance():
    harvester = Harvester(Dial(), Curve(lambda w: 100 * w), {2.0}, 100)
    states = [Dial(w).state_dict() for w in (0.010, 0.014, 0.034)]
    assert not list(harvester.find(0, states[0], 1.0, states[0], 1.0, {2.0}))
    assert not list(harvester.find(1, states[0], 1.0, states[1], 1.4, {2.0}))
    (found,) = harvester.find(2, states[1], 1.4, states[2], 3.4, {2.0})
    assert (found.alpha, found.accuracy) == (0.5, 2.4)

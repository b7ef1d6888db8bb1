"""Who goes first: priorities, means, chains; and that nothing changes where nobody asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.budget import Chance
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.retry import Cause, Failure
from orchestrator.scaling import scale_sweep
from orchestrator.worth import Means, Tally, Worth, tally
from tests.driving import TINY, tiny_plan
from tests.ledgers import BUG, Fake, ledger_of, take, take_all
from tests.sweep_files import problems_of, sweep_of
from trainers.data.catalogue import OFFICIAL


def worth_of(
    tasks: Sequence[Fake], means: Means | None = None, **priorities: int
) -> Mapping[str, Worth]:
    return {"worth": Worth(tasks, priorities, means)}


def runs(*settings: str, seeds: int = 2) -> tuple[list[Fake], dict[str, set[str]]]:
    """Runs seed by seed, as grids have them, and the mean of each setting."""
    tasks = [Fake(f"{setting}{seed}") for seed in range(seeds) for setting in settings]
    means = {setting: {f"{setting}{seed}" for seed in range(seeds)} for setting in settings}
    return tasks, means


# -- means -----------------------------------------------------------------------------------------


def test_a_mean_that_was_begun_is_completed_first() -> None:
    tasks, means = runs("x", "y", "z")
    ledger = ledger_of(*tasks, slots=6, **worth_of(tasks, means))
    assert take_all(ledger) == ["x0", "x1", "y0", "y1", "z0", "z1"]
    assert take_all(ledger_of(*tasks, slots=6)) == ["x0", "y0", "z0", "x1", "y1", "z1"]


def test_the_mean_that_lacks_fewest_seeds_goes_first() -> None:
    """What the store has is no task any more."""
    tasks, means = runs("x", "y", seeds=3)
    left = [task for task in tasks if task.name not in ("y0", "y2")]
    ledger = ledger_of(*left, slots=6, **worth_of(left, means))
    assert take_all(ledger) == ["y1", "x0", "x1", "x2"]


def test_between_equals_the_longest_chain_goes_first() -> None:
    tasks = [Fake("short", cost=5), Fake("long", cost=50)]
    means = {"one": {"short"}, "two": {"long"}}
    assert take(ledger_of(*tasks, **worth_of(tasks, means))) == "long"


def test_a_teacher_counts_as_the_mean_that_waits_for_it() -> None:
    teacher = Fake("teacher", provides=("teacher/acc-30",), cost=1)
    taker = Fake("b0", needs=("teacher/acc-30",))
    others = [Fake("x0", cost=99), Fake("x1", cost=99)]
    tasks = [*others, teacher, taker]
    means = {"x": {"x0", "x1"}, "b": {"b0"}}
    assert take(ledger_of(*tasks, **worth_of(tasks, means))) == "teacher"


def test_a_run_that_comes_back_is_lacking_again() -> None:
    tasks, means = runs("x", "y")
    ledger = ledger_of(*tasks, slots=1, **worth_of(tasks, means))
    assert take(ledger) == "x0"
    ledger.fail("x0", Failure(cause=Cause.WORKER_LOST, message="gone"))
    assert take(ledger) == "x1"
    ledger.done("x1")
    assert take(ledger) == "x0"
    ledger.fail("x0", BUG)
    assert take(ledger) == "y0"


def test_means_are_counted_by_what_they_have() -> None:
    _, means = runs("x", "y", "z")
    assert tally(means, {"x0", "x1", "y0", "other"}) == Tally(1, 1, 1)
    assert str(tally(means, set())) == (
        "0 of 3 settings complete over their seeds, 0 in part, 3 without a run"
    )


# -- priorities ------------------------------------------------------------------------------------


def test_a_higher_priority_goes_before_means_and_chains() -> None:
    tasks, means = runs("x", "y")
    worth = worth_of(tasks, means, y0=1, y1=1, x1=-1)
    assert take_all(ledger_of(*tasks, slots=6, **worth)) == ["y0", "y1", "x0", "x1"]


def test_a_priority_goes_before_the_turns_of_widths() -> None:
    """Narrow runs do not take the devices that a wide one of a higher priority waits for, and a
    wide one of a lower priority waits for narrow ones."""
    wide, narrow = Fake("wide", workers=2), [Fake("n0"), Fake("n1"), Fake("n2")]
    ledger = ledger_of(*narrow, wide, **worth_of([*narrow, wide], n0=2, wide=1))
    assert take_all(ledger) == ["n0"]
    ledger.done("n0")
    assert take_all(ledger) == ["wide"]
    ledger.done("wide")
    assert take_all(ledger) == ["n1", "n2"]


def test_makers_inherit_the_highest_priority_and_a_negative_one_too() -> None:
    teacher = Fake("teacher", provides=("t/1", "t/2"), cost=1)
    low, high = Fake("low", needs=("t/1",)), Fake("high", needs=("t/2",))
    plain = Fake("plain", cost=500)
    tasks = [plain, teacher, low, high]
    assert take(ledger_of(*tasks, **worth_of(tasks, low=-1, high=3))) == "teacher"
    assert take(ledger_of(*tasks, **worth_of(tasks, low=-1, high=-2))) == "plain"


# -- what a time limit admits ----------------------------------------------------------------------


def next_of(ledger: Ledger, **known: Chance) -> str | None:
    task = ledger.next(lambda name: known.get(name, Chance.NONE))
    return None if task is None else task.name


def test_what_can_end_goes_before_what_cannot_within_a_priority() -> None:
    tasks = [Fake("long", cost=90), Fake("short"), Fake("first", cost=90)]
    ledger = ledger_of(*tasks, slots=9, **worth_of(tasks, first=1))
    known = {"long": Chance.PROGRESSES, "first": Chance.PROGRESSES, "short": Chance.ENDS}
    assert [next_of(ledger, **known) for _ in tasks] == ["first", "short", "long"]


def test_what_is_of_no_use_is_passed_over_and_stays_ready() -> None:
    tasks = [Fake("long", cost=90), Fake("short")]
    ledger = ledger_of(*tasks, slots=9)
    assert next_of(ledger, short=Chance.ENDS) == "short"
    assert next_of(ledger) is None
    assert not ledger.is_of_use(lambda name: Chance.NONE)
    assert ledger.is_of_use(lambda name: Chance.PROGRESSES)
    assert next_of(ledger, long=Chance.PROGRESSES) == "long"


def test_a_wide_run_of_no_use_keeps_nobody_waiting() -> None:
    tasks = [Fake("wide", workers=2, cost=90), Fake("narrow")]
    ledger = ledger_of(*tasks, **worth_of(tasks, wide=1))
    assert next_of(ledger, narrow=Chance.ENDS) == "narrow"


# -- in a sweep file -------------------------------------------------------------------------------

GRIDS = """\
priority: 2
grids:
  - axes: {strategy: [A, B], teacher.accuracy: [20], seed: [0, 1]}
  - axes: {strategy: [B], teacher.accuracy: [20, 40], seed: [1]}
    priority: 5
  - set: {strategy: C, teacher.accuracy: 20}
    priority: 0
"""


def by_label(plan: Plan) -> dict[str, int]:
    return {unit.label: plan.priorities.get(unit.name, 0) for unit in plan.of_kind("student")}


def test_a_grid_has_the_sweeps_priority_or_its_own_and_the_highest_counts(tmp_path: Path) -> None:
    found = by_label(tiny_plan(tmp_path, text=TINY + GRIDS))
    assert sorted(found.values()) == [0, 2, 2, 2, 5, 5]
    (in_both,) = [label for label in found if label.startswith("B t20") and "seed1" in label]
    assert found[in_both] == 5


def test_no_priority_is_part_of_a_run_or_of_the_plan_on_file(tmp_path: Path) -> None:
    plain = TINY + GRIDS.replace("priority: 2\n", "").replace("    priority: 5\n", "").replace(
        "    priority: 0\n", ""
    )
    (tmp_path / "plain").mkdir()
    one, other = sweep_of(tmp_path, GRIDS, TINY), sweep_of(tmp_path / "plain", "", plain)
    ours, theirs = make_plan([one], OFFICIAL), make_plan([other], OFFICIAL)
    assert theirs.priorities == {}
    assert ours.units == theirs.units
    assert plan_document(one, ours) == plan_document(other, theirs)
    assert ours.means == theirs.means


def test_means_of_a_plan_are_settings_over_seeds(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, text=TINY + GRIDS)
    assert sorted(map(len, plan.means.values())) == [1, 1, 2, 2]
    labels = {unit.name for unit in plan.of_kind("student")}
    assert {run for runs in plan.means.values() for run in runs} == labels


def test_a_sweep_without_grids_may_have_a_priority(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, text=TINY + "  strategy: B\n  teacher.accuracy: 20\npriority: 3\n")
    assert list(plan.priorities.values()) == [3]


@pytest.mark.parametrize("value", ["1.5", "high", "true", "[1]", "'2'"])
def test_a_priority_that_is_no_integer_is_one_error(tmp_path: Path, value: str) -> None:
    (problem,) = problems_of(tmp_path, f"priority: {value}\n")
    assert (problem.key, problem.line) == ("priority", 7)
    assert "integer" in problem.message
    grid = f"grids:\n  - axes: {{seed: [0]}}\n    priority: {value}\n"
    (problem,) = problems_of(tmp_path, grid)
    assert problem.key == "grids[0].priority"
    assert "integer" in problem.message


def test_a_pilot_keeps_the_priorities_of_its_sweep(tmp_path: Path) -> None:
    text = GRIDS + "scale: {name: small, seeds: 1}\n"
    sweep = scale_sweep(sweep_of(tmp_path, text, TINY), OFFICIAL)
    assert max(make_plan([sweep], OFFICIAL).priorities.values()) >= 2

"""Verdicts on claims about simulated runs of which the truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboards_store import Settings, grid, write_plan, write_run, write_snapshot
from pydantic import ValidationError

from dashboards.claim_layout import ClaimItem
from dashboards.claim_text import (
    asks,
    begun_claims_markdown,
    claim_records,
    claims_markdown,
    refuting,
    summary,
)
from dashboards.claims import Judgement, judge
from dashboards.groups import load
from dashboards.results import load_plan, load_results

Score = Callable[[Mapping[str, Any], int], float]


def noise(settings: Mapping[str, Any], size: float = 1.0) -> float:
    text = repr(sorted((k, str(v)) for k, v in settings.items()))
    return size * float(np.random.default_rng(list(text.encode())).normal())


def claim(*tests: dict[str, Any], name: str = "one") -> ClaimItem:
    item = {"claim": name, "source": "nowhere", "statement": "It is so.", "tests": list(tests)}
    return ClaimItem.model_validate(item)


def verdict(
    store: Path, *tests: dict[str, Any], score: Score, seeds: range = range(5), **points: Any
) -> Judgement:
    """The judgement of one claim on a store of simulated runs."""
    settings = points.pop("points", None) or grid(seeds=seeds, **points)
    write_plan(store, settings, [])
    for point in settings:
        write_run(store, point, score=score)
    for preset in sorted({p["teacher.accuracy"] for p in settings} - {None}):
        write_snapshot(store, preset)
    results = load_results(str(store), load_plan(str(store), "demo"))
    (found,) = judge([claim(*tests)], {"demo": results}, "demo")
    return found


def c_over_b(lead: float, size: float = 0.5) -> Score:
    """C is `lead` points above B, with a common part a seed and noise of its own."""

    def score(settings: Mapping[str, Any], step: int) -> float:
        common = noise({"seed": settings["seed"], "t": settings["teacher.accuracy"]}, 5.0)
        return 50 + common + noise(settings, size) + lead * (settings["strategy"] == "C")

    return score


GREATER = {"kind": "greater", "of": {"strategy": "C"}, "to": {"strategy": "B"}}


def test_a_true_difference_is_supported_although_seeds_differ_more(tmp_path: Path) -> None:
    found = verdict(tmp_path, GREATER | {"each": ["teacher.accuracy"]}, score=c_over_b(3.0))
    assert found.verdict == "supported"
    assert [f.label for f in found.findings] == ["teacher 30%", "teacher 60%"]
    assert all(f.evidence is not None and 2 < f.evidence.estimate < 4 for f in found.findings)
    assert summary(found) == "2 of 2 contrasts hold."


def test_the_opposite_is_said_to_hold(tmp_path: Path) -> None:
    found = verdict(tmp_path, GREATER | {"each": ["teacher.accuracy"]}, score=c_over_b(-3.0))
    assert found.verdict == "not supported"
    assert found.num_opposite == 2
    assert summary(found).startswith("The opposite holds.")


def test_no_difference_is_not_supported_with_five_seeds_and_open_with_four(tmp_path: Path) -> None:
    where = {"where": {"teacher.accuracy": 30}}
    five = verdict(tmp_path / "5", GREATER | where, score=c_over_b(0.0))
    four = verdict(tmp_path / "4", GREATER | where, score=c_over_b(0.0), seeds=range(4))
    assert (five.verdict, five.findings[0].result) == ("not supported", "undecided")
    assert (four.verdict, four.findings[0].result) == ("not enough data", "open")


def test_two_seeds_decide_nothing(tmp_path: Path) -> None:
    test = GREATER | {"where": {"teacher.accuracy": 30}}
    found = verdict(tmp_path, test, score=c_over_b(30.0), seeds=range(2))
    assert found.verdict == "not enough data"
    assert (found.tests[0].have, found.tests[0].need) == (0, 2)
    assert "fewer than three seeds" in found.findings[0].problem


def test_one_missing_cell_leaves_a_claim_about_all_open_and_the_others_strict(
    tmp_path: Path,
) -> None:
    points = grid(strategies="BC", teachers=(30.0, 60.0))
    write_plan(tmp_path, points, [])
    for point in points:
        if (point["strategy"], point["teacher.accuracy"]) != ("C", 60.0):
            write_run(tmp_path, point, score=c_over_b(3.0))
    results = {"demo": load(str(tmp_path), "demo").results}
    item = claim(GREATER | {"each": ["teacher.accuracy"]})
    (found,) = judge([item], results, "demo")
    assert found.verdict == "not enough data"
    assert (found.tests[0].have, found.tests[0].need) == (3, 4)
    evidence = found.findings[0].evidence
    assert evidence is not None
    assert found.findings[0].p_for == pytest.approx(2 * evidence.p_for)  # Holm over both
    (most,) = judge([claim(GREATER | {"each": ["teacher.accuracy"], "need": "any"})], results, "x")
    assert most.verdict == "not enough data"  # names no sweep of the store
    (known,) = judge(
        [claim(GREATER | {"each": ["teacher.accuracy"], "need": "any"})], results, "demo"
    )
    assert known.verdict == "supported"


@pytest.mark.parametrize("strategies", ["C", "BC"])  # within a cell; between its sides
def test_numbers_of_several_teacher_snapshots_say_so(tmp_path: Path, strategies: str) -> None:
    points = grid(strategies="BC", teachers=(30.0, 60.0))
    write_plan(tmp_path, points, [])
    for point in points:
        other = point["teacher.accuracy"] == 60.0 and point["strategy"] == "C"
        other = other and (point["seed"] > 0 or strategies == "BC")
        write_run(tmp_path, point, score=c_over_b(3.0), digest="e" * 64 if other else None)
    results = {"demo": load(str(tmp_path), "demo").results}
    (found,) = judge([claim(GREATER | {"each": ["teacher.accuracy"]})], results, "demo")
    assert [finding.is_mixed for finding in found.findings] == [False, True]
    assert "teacher 60%, more than one teacher snapshot: " in claims_markdown([found])
    problems = [record["problem"] for record in claim_records([found])]
    assert problems == [None, "more than one teacher snapshot"]


MARK = "one teacher a side"


def marks(store: Path, test: dict[str, Any], teacher_of: Callable[[Settings], str]) -> list[bool]:
    """The mark of each contrast, where `teacher_of` names the snapshot behind a student's run."""
    points = grid(teachers=(30.0, 60.0, 90.0))
    write_plan(store, points, [])
    for point in points:
        digest = teacher_of(point) * 64 if point["strategy"] != "A" else None
        write_run(store, point, digest=digest)
    (found,) = judge([claim(test)], {"demo": load(str(store), "demo").results}, "demo")
    assert all(finding.evidence is not None for finding in found.findings)
    texts, columns = (
        claims_markdown([found]),
        [r["one_teacher_a_side"] for r in claim_records([found])],
    )
    assert texts.count(f"“{MARK}”: the sides") == ("yes" in columns)  # said once, if at all
    assert texts.count(MARK) == columns.count("yes") + ("yes" in columns)
    assert all(
        r["problem"] in (None, "more than one teacher snapshot") for r in claim_records([found])
    )
    return [column == "yes" for column in columns]


def of_its_accuracy(point: Settings) -> str:
    return {30.0: "a", 60.0: "b", 90.0: "c"}[point["teacher.accuracy"]]


WEAK_AND_STRONG = {
    "kind": "greater", "where": {"strategy": "B"},
    "of": {"teacher.accuracy": 30}, "to": {"teacher.accuracy": 60},
}  # fmt: skip
CURVE = {
    "kind": "trend",
    "where": {"strategy": "B"},
    "x": "teacher.accuracy",
    "direction": "rising",
}
A_AND_B = {
    "kind": "greater", "where": {"teacher.accuracy": [30, 60]}, "each": ["teacher.accuracy"],
    "of": {"strategy": "A", "teacher.accuracy": None}, "to": {"strategy": "B"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (WEAK_AND_STRONG, [True]),
        (CURVE, [True]),
        (CURVE | {"where": {}, "of": {"strategy": "C"}, "to": {"strategy": "B"}}, [True]),
        (A_AND_B, [True, True]),  # the teacher is on one side alone
        (GREATER | {"each": ["teacher.accuracy"]}, [False] * 3),  # they share it
        (
            {"kind": "trend", "where": {"strategy": "B", "teacher.accuracy": 30}, "x": "step",
             "steps": [10, 50, 300], "direction": "rising"},
            [False],
        ),
        (
            {"kind": "against_value", "where": {"strategy": "B"}, "each": ["teacher.accuracy"],
             "value": 20, "relation": "above"},
            [False] * 3,
        ),
    ],
)  # fmt: skip
def test_contrasts_between_teachers_say_that_there_is_one_a_side(
    tmp_path: Path, test: dict[str, Any], expected: list[bool]
) -> None:
    assert marks(tmp_path, test, of_its_accuracy) == expected


def test_several_teachers_a_side_or_the_same_one_take_the_mark_away(tmp_path: Path) -> None:
    def several(point: Settings) -> str:  # a teacher a seed, as an axis `teacher.seed` has it
        return f"{point['seed']:x}" if point["teacher.accuracy"] == 30 else f"{point['seed'] + 5:x}"

    for number, test in enumerate((WEAK_AND_STRONG, CURVE, A_AND_B)):
        assert not any(marks(tmp_path / str(number), test, several))
    assert not any(marks(tmp_path / "same", WEAK_AND_STRONG, lambda point: "d"))  # an untrained net


def test_most_is_more_than_half(tmp_path: Path) -> None:
    leads = {10.0: 3.0, 30.0: 3.0, 60.0: -3.0}

    def score(settings: Mapping[str, Any], step: int) -> float:
        return c_over_b(leads.get(settings["teacher.accuracy"], 0.0))(settings, step)

    test = GREATER | {"each": ["teacher.accuracy"]}
    options = {"score": score, "strategies": "BC", "teachers": tuple(leads)}
    assert verdict(tmp_path / "m", test | {"need": "most"}, **options).verdict == "supported"
    all_of_them = verdict(tmp_path / "a", test, **options)
    assert all_of_them.verdict == "not supported"
    assert summary(all_of_them) == "2 of 3 contrasts hold, 1 fail. The opposite holds in 1."


def test_a_claim_needs_all_its_tests(tmp_path: Path) -> None:
    close = {"kind": "close", "margin": 1.0, "of": {"strategy": "C"}, "to": {"strategy": "B"}}
    where = {"where": {"teacher.accuracy": 30}}
    found = verdict(tmp_path, GREATER | where, close | where, score=c_over_b(5.0))
    assert [test.result for test in found.tests] == ["holds", "fails"]
    assert found.verdict == "not supported"


def test_a_strategy_without_a_teacher_stands_against_every_teacher(tmp_path: Path) -> None:
    test = {
        "kind": "greater",
        "where": {"teacher.accuracy": [30, 60]},
        "of": {"strategy": "A", "teacher.accuracy": None},
        "to": {"strategy": "B"},
        "each": ["teacher.accuracy", "step"],
        "steps": [100, 300],
    }
    found = verdict(tmp_path, test, score=lambda s, _: 90.0 * (s["strategy"] == "A") + noise(s))
    assert found.verdict == "supported"
    assert [f.label for f in found.findings][:2] == [
        "teacher 30%, step 100",
        "teacher 30%, step 300",
    ]


def test_students_are_compared_with_their_teachers_measured_accuracy(tmp_path: Path) -> None:
    test = {"kind": "against_value", "where": {"strategy": "B"}, "each": ["teacher.accuracy"]}
    above = {"value": "teacher", "relation": "above"}

    def score(settings: Mapping[str, Any], step: int) -> float:  # snapshots measure preset + 0.25
        return (settings["teacher.accuracy"] or 0) + 1.25 + noise(settings, 0.1)

    found = verdict(tmp_path, test | above, score=score, strategies="B")
    assert found.verdict == "supported"
    for finding in found.findings:
        assert finding.evidence is not None
        assert finding.evidence.estimate == pytest.approx(1.0, abs=0.2)
    near = verdict(
        tmp_path,
        test | {"value": 30.0, "relation": "near", "margin": 2},
        score=score,
        strategies="B",
    )
    assert [f.result for f in near.findings] == ["holds", "fails"]


def test_an_unknown_teacher_is_said_to_be_unknown(tmp_path: Path) -> None:
    points = grid(strategies="B", teachers=(30.0,))
    write_plan(tmp_path, points, [])
    for point in points:
        write_run(tmp_path, point)
    test = {"kind": "against_value", "value": "teacher", "relation": "below"}
    (found,) = judge([claim(test)], {"demo": load(str(tmp_path), "demo").results}, "demo")
    assert found.verdict == "not enough data"
    assert "measured accuracy" in found.findings[0].problem


TEACHERS = (10.0, 20.0, 30.0, 40.0, 50.0)


def hump(settings: Mapping[str, Any], step: int) -> float:
    """C / B peaks under a 30% teacher; B rises with the teacher."""
    teacher = settings["teacher.accuracy"] or 0.0
    gain = 1 + 0.3 * np.exp(-(((teacher - 30) / 12) ** 2)) * (settings["strategy"] == "C")
    return float((40 + 0.4 * teacher) * gain + noise(settings, 0.2))


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ({"kind": "peak", "within": [20, 40]}, "supported"),
        ({"kind": "peak", "within": [45, 50]}, "not supported"),
        ({"kind": "rises_then_falls"}, "supported"),
        ({"kind": "trend", "direction": "rising", "to": None}, "supported"),
        ({"kind": "trend", "direction": "falling", "to": None}, "not supported"),
        ({"kind": "trend", "direction": "falling", "slope": 1, "to": None}, "supported"),
        ({"kind": "rises_then_falls", "of": {"strategy": "B"}, "to": None}, "not supported"),
    ],
)
def test_curves_over_a_field(tmp_path: Path, test: dict[str, Any], expected: str) -> None:
    sides = {"x": "teacher.accuracy", "of": {"strategy": "C"}, "to": {"strategy": "B"}}
    if test.get("direction"):
        sides["of"] = {"strategy": "B"}
    found = verdict(tmp_path, sides | test, score=hump, strategies="BC", teachers=TEACHERS)
    assert found.verdict == expected


def test_power_laws_over_images_per_class_with_a_name_among_the_numbers(tmp_path: Path) -> None:
    def score(settings: Mapping[str, Any], step: int) -> float:
        ipc = 5000 if settings["ipc"] == "full" else settings["ipc"]
        return float(100 - 90 * ipc**-0.2 * np.exp(noise(settings, 0.01)))

    test = {"kind": "power_law", "x": "ipc", "numbers": {"full": 5000}}
    points = grid(strategies="A", ipc=(10, 50, 200, 1000, "full"))
    found = verdict(tmp_path / "a", test, score=score, points=points)
    assert found.verdict == "supported"
    unnamed = verdict(tmp_path / "b", test | {"numbers": {}}, score=score, points=points)
    assert "give it one under `numbers`" in unnamed.findings[0].problem


def test_mixed_settings_are_refused_not_averaged(tmp_path: Path) -> None:
    found = verdict(tmp_path, GREATER, score=c_over_b(3.0))
    assert "would mix points that differ in teacher.accuracy" in found.findings[0].problem
    assert found.verdict == "not enough data"


def test_a_sweep_that_was_never_planned_is_named(tmp_path: Path) -> None:
    found = verdict(tmp_path, GREATER | {"sweep": "table_9"}, score=c_over_b(1.0))
    assert found.verdict == "not enough data"
    assert found.findings[0].problem == "sweep table_9 was never planned in this store"


@pytest.mark.parametrize("lead", [3.0, -3.0])
def test_nothing_is_decided_while_a_sweep_was_never_planned(tmp_path: Path, lead: float) -> None:
    """Nobody knows by how many contrasts an answer of today would have to be adjusted."""
    here = GREATER | {"each": ["teacher.accuracy"]}
    found = verdict(tmp_path / "a", here, GREATER | {"sweep": "table_9"}, score=c_over_b(lead))
    assert found.verdict == "not enough data"
    assert [one.result for one in found.findings] == ["open", "open", "missing"]
    found = verdict(tmp_path / "b", here, score=c_over_b(lead))
    assert found.verdict == ("supported" if lead > 0 else "not supported")


@pytest.mark.parametrize("asked", ["elsewhere", "elsewhere-pilot"])
def test_the_suffix_of_a_pilot_is_added_once(asked: str) -> None:
    """A group of pilots names its sweeps with it, a sweep of its own without."""
    (found,) = judge([claim(GREATER | {"sweep": asked})], {}, "demo", "-pilot")
    assert [test.sweep for test in found.tests] == ["elsewhere-pilot"]


def test_claims_without_data_are_counted_alone(tmp_path: Path) -> None:
    found = verdict(tmp_path, GREATER | {"each": ["teacher.accuracy"]}, score=c_over_b(2.0))
    (empty,) = judge([claim(GREATER | {"sweep": "elsewhere"}, name="two")], {}, "demo")
    assert begun_claims_markdown([found]) == claims_markdown([found])
    text = begun_claims_markdown([found, empty])
    assert text.endswith("\n1 of 2 claims have no data yet.\n")
    assert "### one" in text
    assert "### two" not in text


def test_records_and_text_name_everything(tmp_path: Path) -> None:
    found = verdict(tmp_path, GREATER | {"each": ["teacher.accuracy"]}, score=c_over_b(3.0))
    records = claim_records([found])
    assert [r["contrast"] for r in records] == ["teacher 30%", "teacher 60%"]
    assert {r["verdict"] for r in records} == {"supported"}
    text = claims_markdown([found])
    assert "> It is so." in text
    assert asks(found.tests[0].test) == "Strategy C is above Strategy B"
    assert refuting(found.tests[0].test) in text


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"kind": "greater", "of": {"strategy": "C"}, "to": {"strategy": "C"}}, "with itself"),
        (GREATER | {"steps": [1, 2]}, "put `step` into each"),
        (GREATER | {"each": ["seed"]}, "aggregate over seeds"),
        (GREATER | {"of": {"metric": "speed"}}, "speed"),
        (GREATER | {"marign": 1}, "marign"),
        ({"kind": "peak", "x": "ipc", "within": [3, 1]}, "the lower end first"),
        ({"kind": "against_value", "value": 3, "relation": "near"}, "needs a margin"),
        ({"kind": "best"}, "kind"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        claim(wrong)

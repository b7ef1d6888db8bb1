"""Verdicts on claims: every contrast of every test, Holm-adjusted, and what follows from them.

A contrast is decided when each of its cells has three seeds. It `holds` or `fails` when the
adjusted p of that answer is below 0.05; otherwise it is `undecided`: for good where every cell has
five seeds, `open` where more could still decide it. Missing contrasts count in Holm's correction;
as long as it is not known how many they are, because a sweep was never planned, all are `open`.

    all     holds: every contrast holds. fails: one fails.
    most    holds: more than half of the contrasts hold. fails: that cannot happen any more.
    any     holds: one contrast holds. fails: all fail.

A claim is supported when all its tests hold, not supported when one fails or stays undecided at
five seeds and more, and else there is not enough data. Pilots and sweeps with overridden settings
show what each contrast came to, and get no verdict: the claim is about other experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dashboards import claim_statistics as statistics
from dashboards.claim_cells import CellError, ClaimCell, Measured, TestCells, all_steps
from dashboards.claim_layout import (
    Against,
    ClaimItem,
    ClaimTest,
    Close,
    Curve,
    Greater,
    Peak,
    PowerLaw,
    RisesThenFalls,
    Side,
    Trend,
)
from dashboards.claim_statistics import ALPHA, Evidence, holm
from dashboards.labels import as_key, phrase, value_label
from dashboards.pairs import SAME_TEACHER
from dashboards.results import Results

__all__ = ["ENOUGH_SEEDS", "Finding", "Judgement", "Result", "TestResult", "Verdict", "judge"]

Result = Literal["holds", "fails", "undecided", "open", "missing"]
Verdict = Literal["supported", "not supported", "not enough data", "no verdict"]

ENOUGH_SEEDS = 5
"""Seeds from which an undecided contrast counts as not shown."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One contrast. label: the values of `each`. cells: all it needs that the sweep plans; problem:
    why there are none, or fewer. p_for, p_against: Holm-adjusted over the claim; None: missing.
    is_mixed: a cell rests on several teacher snapshots, or two sides on different ones where they
    should share one. one_teacher_a_side: its cells rest on different teachers, on one snapshot each
    (strategy A on none), so that its p knows nothing of how teachers of one kind differ
    (`_one_teacher_a_side`). is_one: False where it stands for contrasts whose number nobody
    knows yet."""

    label: str
    cells: tuple[ClaimCell, ...] = ()
    evidence: Evidence | None = None
    problem: str = ""
    p_for: float | None = None
    p_against: float | None = None
    result: Result = "missing"
    is_mixed: bool = False
    one_teacher_a_side: bool = False
    is_one: bool = True

    @property
    def is_opposite(self) -> bool:
        """It fails, and its interval lies on the other side of no difference."""
        return self.result == "fails" and self.evidence is not None and self.evidence.is_opposite


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """A test with its contrasts. have, need: cells with three seeds, of those it needs."""

    __test__ = False  # for pytest: no test case, in spite of its name

    test: ClaimTest
    sweep: str
    findings: tuple[Finding, ...]
    result: Result

    @property
    def need(self) -> int:
        """Cells that the test needs."""
        return sum(len(finding.cells) for finding in self.findings)

    @property
    def have(self) -> int:
        """Cells with seeds enough."""
        return sum(cell.is_ready for finding in self.findings for cell in finding.cells)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A claim with its tests and what they amount to. departure: how the sweeps it rests on differ
    from the paper's (`results.Plan`), about which their contrasts say nothing: there is no verdict
    then."""

    item: ClaimItem
    tests: tuple[TestResult, ...]
    verdict: Verdict
    departure: str = ""
    findings: tuple[Finding, ...] = field(default=())

    @property
    def num_opposite(self) -> int:
        """Contrasts of which the opposite holds."""
        return sum(finding.is_opposite for finding in self.findings)


def judge(
    claims: Sequence[ClaimItem], sweeps: Mapping[str, Results], default: str, suffix: str = ""
) -> list[Judgement]:
    """Verdicts in the claims' order. sweeps: results by sweep name. default: the sweep of tests
    that name none. suffix: of a pilot's sweep names (`-pilot`), where the plain name is absent."""
    return _Court(claims, sweeps, default, suffix).judgements()


class _Court:
    def __init__(
        self,
        claims: Sequence[ClaimItem],
        sweeps: Mapping[str, Results],
        default: str,
        suffix: str,
    ) -> None:
        self._claims = claims
        self._sweeps = sweeps
        self._default = default
        self._suffix = suffix
        tests: dict[str, list[ClaimTest]] = {}
        for claim in claims:
            for test in claim.tests:
                tests.setdefault(self._name(test), []).append(test)
        self._measured = {
            name: Measured(sweeps[name].evaluations, all_steps(sweeps[name], asked))
            for name, asked in tests.items()
            if name in sweeps
        }

    def _name(self, test: ClaimTest) -> str:
        name = test.sweep or self._default
        if name in self._sweeps or name.endswith(self._suffix):
            return name
        return name + self._suffix

    def judgements(self) -> list[Judgement]:
        return [self._judgement(claim) for claim in self._claims]

    def _judgement(self, claim: ClaimItem) -> Judgement:
        raw = [self._findings(test) for test in claim.tests]
        decided = _decided([finding for findings in raw for finding in findings])
        tests, start = [], 0
        for test, findings in zip(claim.tests, raw, strict=True):
            own = tuple(decided[start : start + len(findings)])
            start += len(findings)
            result = _test_result(test, own)
            tests.append(TestResult(test=test, sweep=self._name(test), findings=own, result=result))
        used = [self._sweeps[t.sweep] for t in tests if t.sweep in self._sweeps]
        departure = ", ".join(dict.fromkeys(filter(None, (r.plan.departure for r in used))))
        return Judgement(
            item=claim,
            tests=tuple(tests),
            verdict="no verdict" if departure else _verdict([test.result for test in tests]),
            departure=departure,
            findings=tuple(decided),
        )

    def _findings(self, test: ClaimTest) -> list[Finding]:
        name = self._name(test)
        if name not in self._sweeps:
            problem = f"sweep {name} was never planned in this store"
            return [Finding(label="", problem=problem, is_one=False)]
        cells = TestCells(test, self._sweeps[name], self._measured[name])
        try:
            return [self._finding(test, cells, at) for at in cells.combinations()]
        except CellError as error:
            return [Finding(label="", problem=str(error), is_one=False)]

    def _finding(self, test: ClaimTest, cells: TestCells, at: Side) -> Finding:
        label = ", ".join(phrase(name, as_key(value)) for name, value in at.items())
        try:
            rows = _rows(test, cells, at)
        except CellError as error:
            return Finding(label=label, problem=str(error))
        needed = tuple(cell for row in rows for cell in row)
        short = sum(not cell.is_ready for cell in needed)
        if short:
            text = f"{short} of {len(needed)} cells have fewer than three seeds"
            return Finding(label=label, cells=needed, problem=text)
        try:
            evidence = self._evidence(test, rows)
        except CellError as error:
            return Finding(label=label, cells=needed, problem=str(error))
        mixed = any(_is_mixed(row) for row in rows)
        return Finding(
            label=label,
            cells=needed,
            evidence=evidence,
            is_mixed=mixed,
            one_teacher_a_side=not mixed and _one_teacher_a_side(needed),
        )

    def _evidence(self, test: ClaimTest, rows: list[list[ClaimCell]]) -> Evidence:
        if isinstance(test, Greater | Close):
            of, to = rows[0]
            estimate = statistics.difference(of.scores, to.scores, is_paired=test.paired)
            decide = statistics.above if isinstance(test, Greater) else statistics.near
            return decide(estimate, test.margin)
        if isinstance(test, Against):
            return _against(test, rows[0][0], self._sweeps[self._name(test)])
        return _curve(test, rows)


def _rows(test: ClaimTest, cells: TestCells, at: Side) -> list[list[ClaimCell]]:
    """The cells of a contrast, a list a position (one for tests that are no curve), a side each."""
    sides = test.sides
    if not isinstance(test, Curve):
        return [[cells.cell(at, side) for side in sides]]
    values = cells.values(test.x)
    if len(values) < 3:
        raise CellError(f"{len(values)} values of {test.x} are no curve: three are needed")
    return [[cells.cell(at | {test.x: value}, side) for side in sides] for value in values]


def _is_mixed(row: Sequence[ClaimCell]) -> bool:
    """The sides of a contrast, or of one position of a curve."""
    of, to = row[0], row[-1]
    settings = of.settings.keys() | to.settings.keys()
    differs = {name for name in settings if of.settings.get(name) != to.settings.get(name)}
    behind = [{*cell.digests.values()} for cell in row]
    is_shared = differs <= {*SAME_TEACHER} and len(set.union(*behind)) > 1
    return is_shared or max(map(len, behind)) > 1


def _one_teacher_a_side(cells: Sequence[ClaimCell]) -> bool:
    """Whether cells that are compared, as sides or as positions of a curve, rest on different
    teachers, each on one snapshot: what one teacher is worth does not cancel then, and stands in
    no p, which is over students' seeds. So of teachers of different accuracies, augmentations or
    backbones, and of strategy A against B or C, whose one teacher is on one side alone. Not of B
    against C under one teacher, nor of students against their own teacher's accuracy, nor where a
    side has several teachers (`teacher.seed`)."""
    behind = {frozenset(cell.digests.values()) for cell in cells}
    return len(behind) > 1 and max(map(len, behind)) == 1


def _against(test: Against, cell: ClaimCell, results: Results) -> Evidence:
    seeds = sorted(cell.scores)
    if test.value == "teacher":
        measured = {snapshot.digest: snapshot.accuracy for snapshot in results.snapshots}
        known = [seed for seed in seeds if cell.digests.get(seed) in measured]
        if len(known) < len(seeds):
            raise CellError("the store does not have the teacher snapshot's measured accuracy")
        values = [measured[cell.digests[seed]] for seed in seeds]
    else:
        values = [test.value] * len(seeds)
    gaps = [cell.scores[seed] - value for seed, value in zip(seeds, values, strict=True)]
    estimate = statistics.mean_of(gaps)
    if test.relation == "near":
        return statistics.near(estimate, test.margin)
    if test.relation == "below":
        return statistics.below(estimate, -test.margin)
    return statistics.above(estimate, test.margin)


def _curve(test: Curve, rows: list[list[ClaimCell]]) -> Evidence:
    seeds = sorted(set.intersection(*(set(cell.scores) for row in rows for cell in row)))
    if len(seeds) < 3:
        raise CellError(f"{len(seeds)} seeds have every position; three are needed")
    q = np.array([[_quantity(test, row, seed) for row in rows] for seed in seeds])
    if isinstance(test, RisesThenFalls):
        return statistics.rises_then_falls(q)
    x = np.array([_position(test, row[0]) for row in rows])
    if isinstance(test, Peak):
        low, high = test.within
        try:
            return statistics.peak(x, q, test.within)
        except ValueError as error:
            raise CellError(f"a peak within {low:g} to {high:g}: {error}") from error
    if isinstance(test, Trend):
        decide = statistics.above if test.direction == "rising" else statistics.below
        slopes = statistics.slopes(np.log10(x) if test.scale == "log" else x, q)
        return decide(statistics.mean_of(slopes), test.slope, "slope")
    assert isinstance(test, PowerLaw)
    is_error = test.response == "error"
    law = 100 - q if is_error else q
    if law.min() <= 0 or x.min() <= 0:
        raise CellError("a power law needs numbers above 0")
    return statistics.power_law(
        x,
        law,
        sign=-1.0 if is_error else 1.0,
        r_squared=test.r_squared,
        follows=test.expect == "follows",
    )


def _quantity(test: Curve, row: list[ClaimCell], seed: int) -> float:
    of = row[0].scores[seed]
    if test.to is None:
        return of
    to = row[1].scores[seed]
    if test.relation == "difference":
        return of - to
    if to == 0:
        raise CellError(f"{row[1].label} is 0: it cannot be divided by")
    return of / to


def _position(test: Curve, cell: ClaimCell) -> float:
    value = float(cell.step) if test.x == "step" else cell.settings[test.x]
    if isinstance(value, str) and value in test.numbers:
        return test.numbers[value]
    if isinstance(value, bool) or not isinstance(value, float):
        text = value_label(test.x, value)
        raise CellError(f"{test.x} {text} is no number: give it one under `numbers`")
    return value


def _decided(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with adjusted p-values and results, in their order."""
    known = [finding for finding in findings if finding.evidence is not None]
    evidence = [finding.evidence for finding in known if finding.evidence is not None]
    p_for = holm([e.p_for for e in evidence], len(findings))
    p_against = holm([e.p_against for e in evidence], len(findings))
    is_counted = all(finding.is_one for finding in findings)
    answers = iter(zip(known, p_for, p_against, strict=True))
    decided = []
    for finding in findings:
        if finding.evidence is None:
            decided.append(finding)
            continue
        _, one, other = next(answers)
        result = _result(finding, one, other) if is_counted else "open"
        decided.append(replace(finding, p_for=one, p_against=other, result=result))
    return decided


def _result(finding: Finding, p_for: float, p_against: float) -> Result:
    if p_for < ALPHA:
        return "holds"
    if p_against < ALPHA:
        return "fails"
    assert finding.evidence is not None  # without it there are no p-values
    return "undecided" if finding.evidence.n >= ENOUGH_SEEDS else "open"


def _test_result(test: ClaimTest, findings: Sequence[Finding]) -> Result:
    results = [finding.result for finding in findings]
    held, total = results.count("holds"), len(results)
    pending = results.count("missing") + results.count("open")
    wanted = {"all": total, "most": total // 2 + 1, "any": 1}[test.need]
    if held >= wanted:
        return "holds"
    is_lost = "fails" in results if test.need == "all" else held + pending < wanted
    if is_lost:
        return "fails" if "fails" in results else "undecided"
    if pending:
        return "missing" if "missing" in results else "open"
    return "undecided"


def _verdict(results: Sequence[Result]) -> Verdict:
    if "fails" in results:
        return "not supported"
    if "missing" in results or "open" in results:
        return "not enough data"
    return "supported" if set(results) == {"holds"} else "not supported"

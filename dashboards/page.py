"""What the report's page shows, in order: overview, claims, sweeps, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.claim_text import (
    asks,
    effect_text,
    estimate_text,
    label_text,
    one_teacher_note,
    p_text,
    refuting,
    summary,
)
from dashboards.claims import Finding, Judgement, TestResult, Verdict
from dashboards.contributions import Contribution, contributions
from dashboards.coverage import coverage_text, missing_runs, shared_settings
from dashboards.groups import Loaded
from dashboards.provenance import environments
from dashboards.raw import teacher_records
from dashboards.referee import TeacherTable, teacher_table
from dashboards.results import Results
from dashboards.sections import Section
from dashboards.sources import Source, claim_sources
from dashboards.tracking_ids import RunIds

__all__ = ["ClaimView", "Page", "Part", "build_page"]

VERDICTS: tuple[Verdict, ...] = ("supported", "not supported", "not enough data", "no verdict")

_RULES = {
    "all": "every contrast must hold",
    "most": "most contrasts must hold",
    "any": "at least one contrast must hold",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One sweep. ids: MLflow run by run name. missing: `coverage.missing_runs`. teachers: students
    beside theirs."""

    name: str
    title: str
    description: str
    settings: str
    anchor: str
    sections: Sequence[Section]
    runs: int
    missing: Sequence[Mapping[str, str]]
    ids: Mapping[str, str]
    teachers: TeacherTable | None

    @property
    def complete(self) -> int:
        """Runs complete up to what the sweep asks."""
        return self.runs - len(self.missing)

    @property
    def coverage(self) -> str:
        """Its runs in words."""
        return coverage_text(self.runs, self.missing)

    @property
    def filled(self) -> int:
        """Cells that have a value."""
        return sum(section.filled for section in self.sections)

    @property
    def planned(self) -> int:
        """Cells that the items ask."""
        return sum(section.planned for section in self.sections)

    @property
    def full(self) -> int:
        """Table cells with every seed."""
        return sum(section.full or 0 for section in self.sections)


@dataclass(frozen=True, kw_only=True)
class ClaimView:
    """One claim in words."""

    title: str
    anchor: str
    statement: str
    source: str
    note: str
    verdict: str
    departure: str
    summary: str
    have: int
    need: int
    tests: Sequence[Mapping[str, Any]]
    sources: Sequence[Source]
    ids: Mapping[str, str]

    @property
    def num_values(self) -> int:
        """Values of runs that stand behind it."""
        return sum(len(source.runs) for source in self.sources)


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole page. pilot_notes: None at full scale. overrides: by which command lines made other
    experiments of its sweeps. restriction: of which runs alone; left_out: how many others
    there are. claims_note: what a mark of their contrasts means. runs: different ones, over all
    sweeps; coverage: they in words."""

    title: str
    description: str
    settings: str
    pilot_notes: tuple[str, ...] | None
    overrides: Sequence[str]
    restriction: str
    left_out: int
    is_group: bool
    parts: Sequence[Part]
    absent: Sequence[str]
    claims: Sequence[ClaimView]
    claims_note: str
    verdicts: Mapping[str, int]
    runs: int
    complete: int
    coverage: str
    teachers: Sequence[Mapping[str, Any]]
    environments: Sequence[Mapping[str, Any]]
    contributions: Sequence[Contribution]
    scoring: Sequence[Mapping[str, Any]]
    problems: Sequence[str]
    has_ids: bool

    @property
    def filled(self) -> int:
        """Cells that have a value."""
        return sum(part.filled for part in self.parts)

    @property
    def planned(self) -> int:
        """Cells that the sweeps ask."""
        return sum(part.planned for part in self.parts)

    @property
    def full(self) -> int:
        """Table cells with every seed."""
        return sum(part.full for part in self.parts)


def build_page(
    loaded: Loaded,
    sections: Mapping[str, Sequence[Section]],
    judgements: Sequence[Judgement],
    ids: RunIds,
    scoring: Sequence[Mapping[str, Any]],
) -> Page:
    """sections: by sweep, in the group's order. scoring: what it took (`scoring_costs`)."""
    parts = [
        _part(results, sections[name], ids.get(name, {})) for name, results in loaded.sweeps.items()
    ]
    runs = {name for results in loaded.sweeps.values() for name in results.plan.run_names}
    missing = {run["name"]: run for part in parts for run in part.missing}
    counts = Counter((judgement.verdict, judgement.departure) for judgement in judgements)
    single = None if loaded.is_group else loaded.results
    return Page(
        title=loaded.plan.title or loaded.plan.sweep,
        description=loaded.plan.description,
        settings=shared_settings(single) if single else "",
        pilot_notes=_pilot_notes(loaded),
        overrides=_overrides(loaded),
        restriction=loaded.results.restriction,
        left_out=sum(r.state == "left out" for r in loaded.results.runs.values()),
        is_group=loaded.is_group,
        parts=parts,
        absent=loaded.absent,
        claims=[_claim(judgement, ids) for judgement in judgements],
        claims_note=one_teacher_note(judgements),
        verdicts={
            f"{verdict} ({departure})" if departure else verdict: counts[verdict, departure]
            for verdict, departure in sorted(counts, key=lambda one: VERDICTS.index(one[0]))
        },
        runs=len(runs),
        complete=len(runs - missing.keys()),
        coverage=coverage_text(len(runs), missing.values()),
        teachers=teacher_records(loaded.results),
        environments=environments(list(loaded.results.runs.values())),
        contributions=contributions(loaded.results.runs.values()),
        scoring=scoring,
        problems=loaded.problems,
        has_ids=any(ids.values()),
    )


def _pilot_notes(loaded: Loaded) -> tuple[str, ...] | None:
    """Notes that all scaled sweeps of the report share: each item says the rest below it. None when
    none is scaled."""
    plans = [loaded.plan, *(results.plan for results in loaded.sweeps.values())]
    scales = [plan.scale for plan in plans if plan.scale is not None]
    lists = [scale.notes for scale in scales if scale.notes]  # a group has none of its own
    shared = (note for note in lists[0] if all(note in notes for notes in lists)) if lists else ()
    return tuple(shared) if scales else None


def _overrides(loaded: Loaded) -> list[str]:
    """What `--set` changed, by sweep where the report has several."""
    return [
        (f"{name}: " if loaded.is_group else "") + "; ".join(results.plan.overrides)
        for name, results in loaded.sweeps.items()
        if results.plan.overrides
    ]


def _part(results: Results, sections: Sequence[Section], ids: Mapping[str, str]) -> Part:
    plan = results.plan
    return Part(
        name=plan.sweep,
        title=plan.title or plan.sweep,
        description=plan.description,
        settings=shared_settings(results),
        anchor=f"sweep--{plan.sweep}",
        sections=sections,
        runs=len(plan.run_names),
        missing=missing_runs(results),
        ids=ids,
        teachers=teacher_table(results),
    )


def _claim(judgement: Judgement, ids: RunIds) -> ClaimView:
    item = judgement.item
    cells = [cell for finding in judgement.findings for cell in finding.cells]
    known: dict[str, str] = {}
    for test in judgement.tests:
        known |= ids.get(test.sweep, {})
    return ClaimView(
        title=item.title or item.name,
        anchor=f"claim--{item.name}",
        statement=item.statement,
        source=item.source,
        note=item.note,
        verdict=judgement.verdict,
        departure=judgement.departure,
        summary=summary(judgement),
        have=sum(test.have for test in judgement.tests),
        need=sum(test.need for test in judgement.tests),
        tests=[_test(test) for test in judgement.tests],
        sources=claim_sources(cells),
        ids=known,
    )


def _test(result: TestResult) -> dict[str, Any]:
    return {
        "asks": asks(result.test),
        "refuting": refuting(result.test),
        "sweep": result.sweep,
        "rule": _RULES[result.test.need],
        "result": result.result,
        "have": result.have,
        "need": result.need,
        "rows": [_finding(finding) for finding in result.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    answer = "opposite holds" if finding.is_opposite else finding.result
    row = {"label": label_text(finding), "problem": finding.problem, "result": answer}
    if finding.evidence is None:
        return row
    return row | {
        "estimate": estimate_text(finding.evidence),
        "effect": effect_text(finding.evidence),
        "n": finding.evidence.n,
        "p": p_text(finding),
    }

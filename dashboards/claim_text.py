"""Claims in words and as files: what a test asks, what would refute it, what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dashboards.claim_layout import (
    Against,
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
from dashboards.claim_statistics import Evidence
from dashboards.claims import Finding, Judgement, TestResult
from dashboards.labels import as_key, axis_label, field_label, phrase

__all__ = [
    "CLAIM_COLUMNS",
    "asks",
    "begun_claims_markdown",
    "claim_records",
    "claims_markdown",
    "effect_text",
    "estimate_text",
    "label_text",
    "one_teacher_note",
    "p_text",
    "refuting",
    "summary",
]

CLAIM_COLUMNS = (
    "claim", "verdict", "test", "kind", "sweep", "contrast", "result", "opposite", "estimate",
    "ci_low", "ci_high", "unit", "effect", "effect_name", "n", "p_for", "p_against", "cells",
    "cells_needed", "one_teacher_a_side", "problem",
)  # fmt: skip


_MIXED = "more than one teacher snapshot"
_ONE_TEACHER = "one teacher a side"


def asks(test: ClaimTest) -> str:
    """What the test asks, in one line: its own words, or the kind's."""
    return test.says or _statement(test)


def refuting(test: ClaimTest) -> str:
    """The outcome that would refute the test: its own words, or the kind's."""
    return test.refuted or _refutation(test)


def _side(side: Side) -> str:
    texts = [
        axis_label(str(value)) if name == "metric" else phrase(name, as_key(value))
        for name, value in side.items()
        if value is not None
    ]
    return ", ".join(texts) or "the score"


def _quantity(test: Curve) -> str:
    of = _side(test.of) if test.of else axis_label(test.metric)
    if test.to is None:
        return of
    return f"{of} {'/' if test.relation == 'ratio' else '−'} {_side(test.to)}"


def _statement(test: ClaimTest) -> str:
    if isinstance(test, Greater):
        beyond = f" by more than {test.margin:g}" if test.margin else ""
        return f"{_side(test.of)} is above {_side(test.to)}{beyond}"
    if isinstance(test, Close):
        return f"{_side(test.of)} and {_side(test.to)} differ by less than {test.margin:g}"
    if isinstance(test, Against):
        value = "its teacher" if test.value == "teacher" else f"{test.value:g}"
        beyond = f" {'within' if test.relation == 'near' else 'by more than'} {test.margin:g}"
        return f"{_side(test.of)} is {test.relation} {value}{beyond if test.margin else ''}"
    x = field_label(test.x).lower()
    if isinstance(test, Trend):
        slope = f" (against a slope of {_number(test.slope)})" if test.slope else ""
        return f"{_quantity(test)} is {test.direction} with {x}{slope}"
    if isinstance(test, Peak):
        low, high = test.within
        return f"{_quantity(test)} peaks at a {x} between {low:g} and {high:g}"
    if isinstance(test, RisesThenFalls):
        return f"{_quantity(test)} rises, then falls with {x}"
    verb = "follows" if test.expect == "follows" else "deviates from"
    return f"{_quantity(test)} {verb} a power law of {x}"


def _refutation(test: ClaimTest) -> str:
    if isinstance(test, Greater):
        return f"The mean difference is significantly below {_number(test.margin)}."
    if isinstance(test, Close):
        return f"The mean difference is significantly beyond ±{test.margin:g}."
    if isinstance(test, Against):
        where = {
            "above": f"below {_number(test.margin)}",
            "below": f"above {_number(-test.margin)}",
        }
        found = where.get(test.relation, f"beyond ±{test.margin:g}")
        return f"The mean difference to the value is significantly {found}."
    if isinstance(test, Trend):
        other = "below" if test.direction == "rising" else "above"
        return f"The slopes of the seeds are significantly {other} {_number(test.slope)}."
    if isinstance(test, Peak):
        low, high = test.within
        return f"The best outside {low:g} to {high:g} is significantly above each one inside."
    if isinstance(test, RisesThenFalls):
        return "An end is significantly above each one between."
    if isinstance(test, PowerLaw) and test.expect == "deviates":
        return f"R² on log axes is significantly above {test.r_squared:g}."
    return f"The exponent has the wrong sign, or R² is significantly below {test.r_squared:g}."


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def estimate_text(evidence: Evidence) -> str:
    """`+3.21 [+2.80, +3.62]`; positions and exponents without a sign."""
    signed = evidence.unit in ("score", "slope")
    numbers = (evidence.estimate, evidence.ci_low, evidence.ci_high)
    estimate, low, high = (_formatted(number, evidence.unit, signed) for number in numbers)
    return f"{estimate} [{low}, {high}]"


def _formatted(value: float, unit: str, signed: bool) -> str:
    form = {"score": ".2f", "slope": ".3g", "position": ",g", "exponent": ".3f"}[unit]
    text = format(abs(value), form)
    sign = "" if float(text.replace(",", "")) == 0 else "−" if value < 0 else "+" * signed
    return sign + text


def effect_text(evidence: Evidence) -> str:
    """`d_z 2.10`; empty where the seeds do not differ."""
    if np.isnan(evidence.effect):
        return ""
    return f"{evidence.effect_name} {evidence.effect:.2f}".replace("-", "−")


def label_text(finding: Finding) -> str:
    """Which contrast it is, and whether more than one teacher snapshot stands behind it, or one
    each behind sides that differ in it."""
    marks = [_MIXED] * finding.is_mixed + [_ONE_TEACHER] * finding.one_teacher_a_side
    return ", ".join(filter(None, [finding.label, *marks]))


def one_teacher_note(judgements: Iterable[Judgement]) -> str:
    """What the mark means, as one sentence; empty where no contrast has it."""
    findings = [finding for judgement in judgements for finding in judgement.findings]
    if not any(finding.one_teacher_a_side for finding in findings):
        return ""
    return (
        f"“{_ONE_TEACHER}”: the sides, or a curve's positions, rest on different teachers, on one "
        "snapshot each (strategy A on none); p is over student seeds under these very teachers, "
        "and says nothing about other teachers of the kind."
    )


def p_text(finding: Finding) -> str:
    """The adjusted p, for the claim or against it, whichever is smaller."""
    if finding.p_for is None or finding.p_against is None:
        return ""
    p = min(finding.p_for, finding.p_against)
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def summary(judgement: Judgement) -> str:
    """One or two sentences under the verdict: how many contrasts hold, fail, are missing."""
    results = [finding.result for finding in judgement.findings]
    total = len(results)
    contrasts = "contrast" if total == 1 else "contrasts"
    parts = [f"{results.count('holds')} of {total} {contrasts} hold"]
    counts = {"fails": "fail", "undecided": "undecided", "open": "open", "missing": "without data"}
    parts += [f"{results.count(r)} {text}" for r, text in counts.items() if r in results]
    text = ", ".join(parts) + "."
    if judgement.num_opposite == total:
        return f"The opposite holds. {text}"
    if judgement.num_opposite:
        return f"{text} The opposite holds in {judgement.num_opposite}."
    return text


def claim_records(judgements: Iterable[Judgement]) -> list[dict[str, Any]]:
    """One record a contrast, in order; columns CLAIM_COLUMNS."""
    return [
        _record(judgement, result, number, finding)
        for judgement in judgements
        for number, result in enumerate(judgement.tests, 1)
        for finding in result.findings
    ]


def _record(
    judgement: Judgement, result: TestResult, number: int, finding: Finding
) -> dict[str, Any]:
    evidence = finding.evidence
    numbers: dict[str, Any] = {}
    if evidence is not None:
        numbers = {
            name: None if isinstance(value, float) and np.isnan(value) else value
            for name, value in vars(evidence).items()
            if name in CLAIM_COLUMNS and not name.startswith("p_")
        }
    return numbers | {
        "claim": judgement.item.name,
        "verdict": judgement.verdict,
        "test": number,
        "kind": result.test.kind,
        "sweep": result.sweep,
        "contrast": finding.label,
        "result": finding.result,
        "opposite": _yes(finding.is_opposite),
        "p_for": finding.p_for,
        "p_against": finding.p_against,
        "cells": sum(cell.is_ready for cell in finding.cells),
        "cells_needed": len(finding.cells),
        "one_teacher_a_side": _yes(finding.one_teacher_a_side) if evidence else None,
        "problem": finding.problem or (_MIXED if finding.is_mixed else None),
    }


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def claims_markdown(judgements: Sequence[Judgement], level: int = 2) -> str:
    """A heading, the statement, the verdict and its contrasts, claim by claim."""
    parts = [f"{'#' * level} Claims", *filter(None, [one_teacher_note(judgements)])]
    for judgement in judgements:
        item = judgement.item
        departure = f" ({judgement.departure})" if judgement.departure else ""
        parts += [
            f"{'#' * (level + 1)} {item.title or item.name}",
            f"> {' '.join(item.statement.split())}\n>\n> {item.source}",
            f"**{judgement.verdict.capitalize()}{departure}.** {summary(judgement)}",
        ]
        parts += [item.note] if item.note else []
        parts += [_test_markdown(result) for result in judgement.tests]
    return "\n\n".join(parts) + "\n"


def begun_claims_markdown(judgements: Sequence[Judgement]) -> str:
    """The same of claims that have data; of the others, how many there are."""
    begun = [one for one in judgements if any(test.have for test in one.tests)]
    text = claims_markdown(begun)
    left = len(judgements) - len(begun)
    return f"{text}\n{left} of {len(judgements)} claims have no data yet.\n" if left else text


def _test_markdown(result: TestResult) -> str:
    head = (
        f"- {asks(result.test)} ({result.sweep}; {result.test.need} contrasts; cells "
        f"{result.have} of {result.need}): **{result.result}**. Refuted by: "
        f"{refuting(result.test)}"
    )
    return "\n".join([head, *(f"  - {_finding_text(finding)}" for finding in result.findings)])


def _finding_text(finding: Finding) -> str:
    label = f"{text}: " if (text := label_text(finding)) else ""
    if finding.evidence is None:
        return f"{label}{finding.result} ({finding.problem})"
    facts = [estimate_text(finding.evidence), effect_text(finding.evidence)]
    facts += [f"n = {finding.evidence.n}", f"p {p_text(finding)}", finding.result]
    return label + ", ".join(fact for fact in facts if fact)

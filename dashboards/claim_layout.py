"""What a paper claims, as data: the statement, and tests that could refute it.

A claim holds when all its tests hold. A test makes one contrast for each combination of the values
of the fields in `each`; `need` says how many of them must hold. Kinds of tests are few and closed;
their formulas stand in the docstrings below, and `dashboards.claim_statistics` computes them.

Every test selects cells: the runs of a sweep that `where` accepts, one side's settings laid over
it, over seeds, at a step. A side may override a field of `where` or `each` (strategy A has no
teacher: `to: {strategy: A, teacher.accuracy: null}`), and may name `metric` or `step`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from dashboards.layout_types import (
    METRICS,
    PSEUDO_FIELDS,
    FieldName,
    FileName,
    Metric,
    Model,
    Step,
)

__all__ = [
    "Against",
    "ClaimItem",
    "ClaimTest",
    "Close",
    "Curve",
    "Greater",
    "Peak",
    "PowerLaw",
    "RisesThenFalls",
    "Side",
    "Trend",
]

Side = dict[FieldName, JsonValue]
"""Settings that single out a cell; also `metric` and `step`."""

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class _Test(Model):
    sweep: FileName | None = Field(
        None, description="Sweep whose runs are tested; null: the one whose report has the claim."
    )
    says: str = Field("", description="What this test asks, in one line.")
    where: Side = Field(
        default_factory=dict,
        description="Points that count: a value or a list of values per field, as in tables.",
    )
    each: tuple[FieldName, ...] = Field(
        (),
        description="One contrast for each combination of these fields' values: those that `where` "
        "lists, else all that the sweep has. May contain `step`.",
    )
    steps: tuple[Step, ...] = Field(
        (), description="Where metrics are read; none: the last step. Several need `step` in each."
    )
    metric: Metric = Field("top1_h", description="What is read there.")
    need: Literal["all", "most", "any"] = Field(
        "all", description="all contrasts must hold, more than half of them, or at least one."
    )
    refuted: str = Field("", description="The outcome that refutes it; empty: the kind's own.")

    @property
    def sides(self) -> tuple[Side, ...]:
        """The settings that the test lays over `where`; one empty side where it names none."""
        named = [side for key in ("of", "to") if (side := getattr(self, key, None)) is not None]
        return tuple(named) or ({},)

    @property
    def position(self) -> str | None:
        """The field that a curve's positions differ in; None where there is no curve."""
        return None

    @property
    def spanning(self) -> tuple[str, ...]:
        """Settings that tell the cells apart."""
        names = dict.fromkeys((*self.each, *(name for side in self.sides for name in side)))
        names |= {self.position: None} if self.position else {}
        return tuple(name for name in names if name not in PSEUDO_FIELDS)

    @property
    def named_steps(self) -> tuple[int, ...]:
        """Every step that the test reads, ascending; none where it reads the last one alone."""
        of_sides = {step for side in self.sides if isinstance(step := side.get("step"), int)}
        return tuple(sorted({*self.steps, *of_sides}))

    @model_validator(mode="after")
    def _layout(self) -> Self:
        if "seed" in self.spanning or "seed" in self.where:
            raise ValueError("`seed` cannot tell cells apart: they aggregate over seeds")
        for name in PSEUDO_FIELDS:
            if name in self.where:
                raise ValueError(f"where: `{name}` is no setting; use `{name}` or `steps`")
        if "metric" in self.each:
            raise ValueError("each: `metric` is no field; give of and to a metric")
        if len(set(self.steps)) > 1 and "step" not in (*self.each, self.position):
            raise ValueError(f"{len(self.steps)} steps are read: put `step` into each")
        if "step" in (*self.each, self.position) and not self.steps:
            raise ValueError("`step` needs `steps`")
        for side in self.sides:
            if side.get("metric", self.metric) not in METRICS:
                raise ValueError(f"metric {side['metric']!r} is not one of {', '.join(METRICS)}")
            step = side.get("step")
            if "step" in side and (isinstance(step, bool) or not isinstance(step, int) or step < 1):
                raise ValueError(f"step {step!r} is no step")
            if any(isinstance(value, list) for value in side.values()):
                raise ValueError("a side takes one value per field")
        return self


class _TwoSides(_Test):
    of: Side = Field(
        default_factory=dict, description="The side compared (minuend); {}: as `where` and `each`."
    )
    to: Side = Field(
        default_factory=dict, description="The side it is compared to (subtrahend); {}: likewise."
    )

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if self.of == self.to:
            raise ValueError("compares a side with itself")
        return self


class Greater(_TwoSides):
    """mean(of − to) > margin.

    d_s = of_s − to_s by seed s; t = (mean(d) − margin) · √n / std(d), n − 1 degrees of freedom;
    effect size Cohen's d_z = mean(d) / std(d). Where fewer than three seeds are common, or with
    `paired: false`: Welch's t, effect size Cohen's d with the pooled standard deviation. Holds when
    t > 0 and the two-sided p, Holm-adjusted over the claim, is below 0.05; fails when t < 0 and p
    is. The opposite holds when the 95% interval of the difference lies below 0 and the test fails.
    """

    kind: Literal["greater"]
    margin: float = Field(0.0, allow_inf_nan=False, description="In the metric's unit.")
    paired: bool = Field(True, description="Compare seed by seed; false: Welch.")


class Close(_TwoSides):
    """|mean(of − to)| < margin.

    Equivalence by two one-sided t-tests (TOST) of mean(d) against −margin and +margin; p is the
    larger one. Holds when it is below 0.05 after Holm; fails when |mean(d)| is significantly above
    the margin (two-sided p, after Holm).
    """

    kind: Literal["close"]
    margin: float = Field(gt=0, allow_inf_nan=False, description="In the metric's unit.")
    paired: bool = Field(True, description="Compare seed by seed; false: Welch.")


class Against(_Test):
    """mean(score − value) above 0, below 0, or within ± margin.

    value: a number, or `teacher`: the accuracy measured on the snapshot that each run learnt from.
    One-sample t-test over seeds; effect size mean / std. above: > margin; below: < −margin; near:
    TOST as in `close`.
    """

    kind: Literal["against_value"]
    of: Side = Field(default_factory=dict, description="The side compared.")
    value: Literal["teacher"] | Annotated[float, Field(allow_inf_nan=False)]
    relation: Literal["above", "below", "near"]
    margin: float = Field(0.0, ge=0, allow_inf_nan=False, description="In the metric's unit.")

    @model_validator(mode="after")
    def _has_a_margin(self) -> Self:
        if self.relation == "near" and self.margin == 0:
            raise ValueError("relation: near needs a margin")
        return self


class Curve(_Test):
    """Tests of a quantity q over the values of a field x: the metric of `of`, or its ratio or
    difference to that of `to`, seed by seed. Seeds that lack a position do not count."""

    x: FieldName = Field(description="The field, or `step`.")
    numbers: dict[str, float] = Field(
        default_factory=dict, description="Numbers for values that are names, e.g. {full: 5000}."
    )
    of: Side = Field(default_factory=dict, description="The side whose metric is taken.")
    to: Side | None = Field(None, description="The side it is divided by, or subtracted from it.")
    relation: Literal["ratio", "difference"] = Field("ratio", description="of / to, or of − to.")

    @property
    def position(self) -> str | None:
        """The field x."""
        return self.x

    @model_validator(mode="after")
    def _one_x(self) -> Self:
        if self.x in self.each or any(self.x in side for side in self.sides):
            raise ValueError(f"`{self.x}` is x already")
        if self.x == "metric":
            raise ValueError("x: `metric` is no field")
        return self


class Trend(Curve):
    """q rises (or falls) with x, by more (or less) than `slope`.

    Least-squares slope b_s of q on x (on log10 x with `scale: log`) for every seed; one-sample
    t-test of b against `slope`; effect size mean(b) / std(b).
    """

    kind: Literal["trend"]
    direction: Literal["rising", "falling"]
    scale: Literal["linear", "log"] = "linear"
    slope: float = Field(
        0.0,
        allow_inf_nan=False,
        description="What the slopes are compared with: 1 asks whether a student gains with its "
        "teacher point by point.",
    )


class Peak(Curve):
    """The x at which the mean of q over seeds is largest lies in `within` (both ends included).

    For each seed s the best x inside is that of the *other* seeds' mean, so that no seed chooses
    the place it is judged at; q_s there must be above q_s at each x outside (paired t; p is the
    largest one). Against it: the best outside above each inside. The interval is that of the
    bootstrapped peak over seeds (all n^n resamples up to six seeds, else 10,000 drawn ones).
    """

    kind: Literal["peak"]
    within: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.within[0] <= self.within[1]:
            raise ValueError("within: the lower end first")
        return self


class RisesThenFalls(Curve):
    """q rises from the first x to an inner one and falls to the last.

    For each seed s the peak k is that of the *other* seeds' mean, so that no seed chooses the place
    it is judged at: rise_s = q_s(k) − q_s(first), fall_s = q_s(k) − q_s(last). Both means must be
    above 0 (paired t; p is the larger one; effect size d_z of the weaker). Against it:
    the better end, chosen so too, above each x between.
    """

    kind: Literal["rises_then_falls"]


class PowerLaw(Curve):
    """The error 100 − q follows a · x^(−b) with b > 0 (response: error), or q itself a · x^b.

    Least squares of log10 on log10 for every seed: exponent b_s and R²_s. follows: mean(b) > 0 by a
    one-sample t-test, and mean of artanh √R² above that of `r_squared`; p is the larger one.
    deviates: R² significantly below it.
    """

    kind: Literal["power_law"]
    expect: Literal["follows", "deviates"] = "follows"
    response: Literal["error", "score"] = "error"
    r_squared: float = Field(0.95, gt=0, lt=1, description="Share of variance a power law leaves.")


ClaimTest = Annotated[
    Greater | Close | Against | Trend | Peak | RisesThenFalls | PowerLaw,
    Field(discriminator="kind"),
]


class ClaimItem(Model):
    """A statement of a paper with the tests that could refute it. Supported when all tests hold."""

    claim: FileName = Field(description="Short name, unique in the report.")
    title: str = Field("", description="Heading in the report; the name when empty.")
    source: Text = Field(description="Where it stands: copy, section, claim, figure or table.")
    statement: Text = Field(description="The sentence as printed.")
    note: str = Field("", description="How it was read, where that is not plain.")
    tests: tuple[ClaimTest, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """Short name."""
        return self.claim

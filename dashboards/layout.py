"""What a sweep asks to be reported: the items of its `report:` list.

An item is a table or a figure, told apart by which of the keys `table` and `figure` it has. The
sweep specification validates with these models and writes them, defaults filled in, into plan.json,
from which the report is made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    TypeAdapter,
    model_validator,
)

from dashboards.claim_layout import ClaimItem
from dashboards.layout_types import (
    METRICS,
    PSEUDO_FIELDS,
    FieldName,
    FileName,
    Label,
    Metric,
    Model,
    Step,
)

__all__ = [
    "METRICS",
    "PSEUDO_FIELDS",
    "REPORT_ITEMS",
    "Bold",
    "ClaimItem",
    "Contrast",
    "FigureItem",
    "Metric",
    "Reference",
    "ReportItem",
    "TableItem",
    "unknown_fields",
]

CsvPath = Annotated[str, StringConstraints(pattern=r"^[^\s/\\][^\\\n]*\.csv$", max_length=200)]

Bold = Literal["row_max", "column_max", "gain"]
"""Which numbers of a table stand out: the largest of a row; the largest of a column among the rows
that differ in their last field alone; ratios that print above 1."""


class Contrast(Model):
    """Two values of one field, set against each other with everything else equal."""

    field: FieldName = Field(description="The field whose two values are compared, e.g. strategy.")
    of: JsonValue = Field(description="Value compared (numerator; minuend).")
    to: JsonValue = Field(description="Value it is compared to (denominator; subtrahend).")

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if self.of == self.to:
            raise ValueError(f"compares {self.of!r} with itself")
        return self


class Reference(Model):
    """One number that the paper prints, and the coordinates of the cell it belongs to.

    Exactly the numbers that a person reads off the page: nothing is computed from them here.
    """

    at: dict[FieldName, JsonValue] = Field(
        description="Coordinates; null where a field does not apply (a teacher under strategy A)."
    )
    kind: Literal["mean", "gain"] = Field(
        "mean", description="mean: an accuracy; gain: a ratio of two, without the contrast's field."
    )
    value: float | None = Field(None, allow_inf_nan=False, description="As the arXiv copy has it.")
    std: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="The ± behind it; null: none is printed."
    )
    review_value: float | None = Field(
        None, allow_inf_nan=False, description="As the review copy has it, where that differs."
    )
    review_std: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="The ± behind the review copy's value."
    )
    status: Literal["printed", "partial"] = Field(
        "printed", description="partial: read off a drawing of which not everything is legible."
    )
    note: str = Field("", description="What is odd about it.")

    @model_validator(mode="after")
    def _has_a_value(self) -> Self:
        if self.value is None and self.review_value is None:
            raise ValueError("has neither a value nor a review_value")
        for name in ("", "review_"):
            if getattr(self, f"{name}std") is not None and getattr(self, f"{name}value") is None:
                raise ValueError(f"has a {name}std without a {name}value")
        return self


class _Item(Model):
    title: str = Field("", description="Heading in the report; the name when empty.")
    where: dict[FieldName, JsonValue] = Field(
        default_factory=dict,
        description="Points that count: a value or a list of values per field; null stands for "
        "points to which the field does not apply (a teacher under strategy A). The order of a "
        "list is that of the rows or columns.",
    )
    reference: CsvPath | None = Field(
        None, description="CSV file with the paper's numbers, relative to the sweep file."
    )
    references: tuple[Reference, ...] = Field(
        (), description="Its rows; the planner writes them into plan.json."
    )

    def accepts(self, settings: dict[str, JsonValue]) -> bool:
        """Whether a point with `settings` (all fields, seed included) belongs to this item."""
        return all(
            settings.get(field) in (wanted if isinstance(wanted, list) else [wanted])
            for field, wanted in self.where.items()
        )


class TableItem(_Item):
    """A table: mean ± standard deviation over seeds by rows and columns, at steps."""

    table: FileName = Field(description="File name of the table, without an extension.")
    metric: Metric = Field("top1_h", description="What is shown, as it stands at the step.")
    metrics: dict[Label, Metric] = Field(
        default_factory=dict,
        description="Several metrics by the label they are shown under; replaces `metric`. "
        "The pseudo-field `metric` then stands in rows or columns.",
    )
    rows: tuple[FieldName, ...] = Field(
        min_length=1,
        description="Fields that span the rows, outermost first; also `metric` and `step`.",
    )
    columns: tuple[FieldName, ...] = Field(
        (), description="Fields that span the columns; also `metric` and `step`."
    )
    steps: tuple[Step, ...] = Field(
        (), description="Steps shown; none given: the last step (horizon) of each point."
    )
    ratio: Contrast | None = Field(
        None, description="Adds the ratio of two means (the paper's Gain)."
    )
    paired: Contrast | None = Field(
        None, description="Adds differences by seed, their mean, 95% interval and p."
    )
    heads: dict[FieldName, Label] = Field(
        default_factory=dict,
        description="Heading of a spanning field in the paper's words; that of a column field "
        "stands above all its values.",
    )
    bold: Bold | None = Field(
        None,
        description="Numbers in bold: the largest of each row (row_max), of each column within a "
        "group of rows (column_max), or ratios above 1 (gain).",
    )

    @property
    def name(self) -> str:
        """File name without an extension."""
        return self.table

    @property
    def labelled_metrics(self) -> dict[str, Metric]:
        """Label to column of metrics.parquet, in the order shown."""
        return dict(self.metrics) or {self.metric: self.metric}

    @property
    def spanning(self) -> tuple[str, ...]:
        """Fields that tell the cells apart: those of the rows, then those of the columns."""
        return self.rows + self.columns

    @model_validator(mode="after")
    def _layout(self) -> Self:
        if len(set(self.spanning)) != len(self.spanning):
            raise ValueError("a field stands twice in rows and columns")
        if "seed" in self.spanning:
            raise ValueError("`seed` cannot span a table: cells aggregate over seeds")
        for field, num_values in (("metric", len(self.metrics)), ("step", len(set(self.steps)))):
            if num_values > 1 and field not in self.spanning:
                raise ValueError(
                    f"{num_values} {field}s are shown: put `{field}` in rows or columns"
                )
        for field in self.heads:
            if field not in self.spanning:
                raise ValueError(f"heads: `{field}` is in neither rows nor columns")
        if self.bold == "gain" and self.ratio is None:
            raise ValueError("bold: gain needs a ratio")
        return self

    @model_validator(mode="after")
    def _contrasts(self) -> Self:
        for key, contrast in (("ratio", self.ratio), ("paired", self.paired)):
            if contrast is None:
                continue
            if contrast.field not in self.spanning:
                raise ValueError(f"{key}: `{contrast.field}` is in neither rows nor columns")
            listed: dict[str, list[Any]] = {
                "metric": list(self.labelled_metrics),
                "step": list(self.steps),
            }
            known = listed.get(contrast.field, [])
            for value in (contrast.of, contrast.to):
                if known and value not in known:
                    raise ValueError(f"{key}: {contrast.field} {value!r} is not one of {known}")
        return self


class FigureItem(_Item):
    """A figure: the mean over seeds with its 95% interval against the step or a field; or a heat
    map of means over two fields."""

    figure: FileName = Field(description="File name of the figure, without an extension.")
    kind: Literal["line", "heatmap"] = Field(
        "line", description="line: means against x; heatmap: means over x and y."
    )
    y: FieldName | None = Field(
        None, description="Field that spans the rows of a heat map; lines have none."
    )
    x: FieldName = Field("step", description="`step` for curves, or a field.")
    metric: Metric = Field("top1_h", description="What is shown, as it stands at the step.")
    hue: FieldName | None = Field(None, description="Field told by colour.")
    style: FieldName | None = Field(None, description="Field told by line style and marker.")
    panel: FieldName | None = Field(None, description="Field with one panel a value.")
    steps: tuple[Step, ...] = Field(
        (),
        description="Steps shown when x is a field; none given: the last step (horizon). "
        "Several steps need `step` as hue, style or panel.",
    )
    smooth: Literal["lowess"] | None = Field(
        None, description="Adds a LOWESS line (fraction 0.1); only with x: step."
    )
    scale: Literal["linear", "log"] = Field("linear", description="Scale of the x axis.")
    fit: Literal["power"] | None = Field(
        None,
        description="Adds a power law of the error, 100 − top-1 = a · x^(−b), to each line with "
        "three means and more; only when x is a field and the metric a top-1.",
    )

    @property
    def name(self) -> str:
        """File name without an extension."""
        return self.figure

    @property
    def spanning(self) -> tuple[str, ...]:
        """Fields that tell the points of the figure apart, x first."""
        return (self.x, *(f for f in (self.y, self.hue, self.style, self.panel) if f is not None))

    @model_validator(mode="after")
    def _layout(self) -> Self:
        # hue and style may name one field (colour and dash together); x and panel stand alone
        if self.x in self.spanning[1:] or (self.panel and self.panel in (self.hue, self.style)):
            raise ValueError("a field stands twice among x, hue, style and panel")
        if {"seed", "metric"} & set(self.spanning):
            raise ValueError("`seed` and `metric` cannot span a figure")
        if self.x == "step" and self.steps:
            raise ValueError("steps: only when x is a field; with x: step every step is shown")
        if self.x != "step" and self.smooth:
            raise ValueError("smooth: only with x: step")
        if len(set(self.steps)) > 1 and "step" not in self.spanning:
            raise ValueError(f"{len(self.steps)} steps are shown: make `step` hue, style or panel")
        return self

    @model_validator(mode="after")
    def _kinds(self) -> Self:
        if self.kind == "line" and self.y is not None:
            raise ValueError("y: only with kind: heatmap")
        if self.kind == "heatmap":
            if self.y is None or self.x == "step" or self.y in (self.x, self.panel):
                raise ValueError("kind: heatmap needs two different fields x and y")
            for key in ("hue", "style", "smooth", "fit"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: not in a heat map")
        if self.fit and (self.x == "step" or not self.metric.startswith("top1")):
            raise ValueError("fit: only when x is a field and the metric a top-1")
        return self


def _kind(item: Any) -> str | None:
    keys = item if isinstance(item, dict) else {name: 1 for name in type(item).model_fields}
    found = [key for key in ("table", "figure", "claim") if key in keys]
    return found[0] if len(found) == 1 else None


ReportItem = Annotated[
    Annotated[TableItem, Tag("table")]
    | Annotated[FigureItem, Tag("figure")]
    | Annotated[ClaimItem, Tag("claim")],
    Discriminator(
        _kind,
        custom_error_type="report_item",
        custom_error_message="a report item has exactly one of the keys `table`, `figure` and "
        "`claim`",
    ),
]

REPORT_ITEMS: TypeAdapter[tuple[TableItem | FigureItem | ClaimItem, ...]] = TypeAdapter(
    tuple[ReportItem, ...]
)
"""Validates a whole `report:` list."""


def unknown_fields(item: TableItem | FigureItem, known: frozenset[str]) -> list[str]:
    """Fields that `item` names and no point has, in the item's order. known: setting names."""
    named = [field for field in item.spanning if field not in PSEUDO_FIELDS] + list(item.where)
    return [field for field in dict.fromkeys(named) if field not in known]

"""What a sweep asks to be reported: the items of its `report:` list.

An item is a table or a figure, told apart by which of the keys `table` and `figure` it has. The
sweep specification validates with these models and writes them, defaults filled in, into plan.json,
from which the report is made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    TypeAdapter,
    model_validator,
)

__all__ = [
    "METRICS",
    "PSEUDO_FIELDS",
    "REPORT_ITEMS",
    "Contrast",
    "FigureItem",
    "Metric",
    "ReportItem",
    "TableItem",
    "unknown_fields",
]

Metric = Literal[
    "top1_h", "top1_g", "top1", "train_kl", "train_ce", "target_entropy", "teacher_agreement"
]
"""Columns of metrics.parquet that describe training, not its execution. `top1` is a teacher's."""

METRICS: tuple[Metric, ...] = (
    "top1_h",
    "top1_g",
    "top1",
    "train_kl",
    "train_ce",
    "target_entropy",
    "teacher_agreement",
)

PSEUDO_FIELDS = ("metric", "step")
"""Names that stand among an item's fields but are no setting of a run."""

FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", min_length=1, max_length=80)
]
FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Step = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Contrast(_Model):
    """Two values of one field, set against each other with everything else equal."""

    field: FieldName = Field(description="The field whose two values are compared, e.g. strategy.")
    of: JsonValue = Field(description="Value compared (numerator; minuend).")
    to: JsonValue = Field(description="Value it is compared to (denominator; subtrahend).")

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if self.of == self.to:
            raise ValueError(f"compares {self.of!r} with itself")
        return self


class _Item(_Model):
    title: str = Field("", description="Heading in the report; the name when empty.")
    where: dict[FieldName, JsonValue] = Field(
        default_factory=dict,
        description="Points that count: a value or a list of values per field; null stands for "
        "points to which the field does not apply (a teacher under strategy A).",
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
    """A figure: the mean over seeds with its 95% interval against the step or a field."""

    figure: FileName = Field(description="File name of the figure, without an extension.")
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

    @property
    def name(self) -> str:
        """File name without an extension."""
        return self.figure

    @property
    def spanning(self) -> tuple[str, ...]:
        """Fields that tell the points of the figure apart, x first."""
        return (self.x, *(f for f in (self.hue, self.style, self.panel) if f is not None))

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


def _kind(item: Any) -> str | None:
    keys = item if isinstance(item, dict) else {name: 1 for name in type(item).model_fields}
    found = [key for key in ("table", "figure") if key in keys]
    return found[0] if len(found) == 1 else None


ReportItem = Annotated[
    Annotated[TableItem, Tag("table")] | Annotated[FigureItem, Tag("figure")],
    Discriminator(
        _kind,
        custom_error_type="report_item",
        custom_error_message="a report item has exactly one of the keys `table` and `figure`",
    ),
]

REPORT_ITEMS: TypeAdapter[tuple[TableItem | FigureItem, ...]] = TypeAdapter(tuple[ReportItem, ...])
"""Validates a whole `report:` list."""


def unknown_fields(item: TableItem | FigureItem, known: frozenset[str]) -> list[str]:
    """Fields that `item` names and no point has, in the item's order. known: setting names."""
    named = [field for field in item.spanning if field not in PSEUDO_FIELDS] + list(item.where)
    return [field for field in dict.fromkeys(named) if field not in known]

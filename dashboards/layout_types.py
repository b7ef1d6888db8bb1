"""Names and values that every kind of report item is made of."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = ["METRICS", "PSEUDO_FIELDS", "FieldName", "FileName", "Label", "Metric", "Model", "Step"]

Metric = Literal[
    "top1_h", "top1_g", "top1", "train_kl", "train_ce", "target_entropy", "teacher_agreement"
]
"""Columns of metrics.parquet that describe training, not its execution. `top1` is a teacher's."""

METRICS: tuple[Metric, ...] = get_args(Metric)

PSEUDO_FIELDS = ("metric", "step")
"""Names that stand among an item's fields but are no setting of a run."""

FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", min_length=1, max_length=80)
]
FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Step = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """A value of a sweep file: never changed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

"""What a report item may say, and what it is told when it says something else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dashboards.labels import phrase, value_label
from dashboards.layout import METRICS, REPORT_ITEMS, FigureItem, TableItem, unknown_fields

TABLE: dict[str, Any] = {"table": "t", "rows": ["strategy"], "columns": ["teacher.accuracy"]}
FIGURE: dict[str, Any] = {"figure": "f", "hue": "strategy"}
HEATMAP: dict[str, Any] = {"figure": "h", "kind": "heatmap", "x": "teacher.accuracy", "y": "ipc"}


def one(item: dict[str, Any]) -> TableItem | FigureItem:
    return REPORT_ITEMS.validate_python([item])[0]


def test_the_key_tells_tables_from_figures_and_defaults_are_filled_in() -> None:
    table, figure = REPORT_ITEMS.validate_python([TABLE, FIGURE])
    assert isinstance(table, TableItem)
    assert isinstance(figure, FigureItem)
    assert table.labelled_metrics == {"top1_h": "top1_h"}
    assert figure.x == "step"


def test_a_dumped_item_is_read_back_equal() -> None:
    items = REPORT_ITEMS.validate_python(
        [
            TABLE | {"ratio": {"field": "strategy", "of": "C", "to": "B"}},
            FIGURE | {"where": {"ipc": [10, "full"]}, "smooth": "lowess"},
            HEATMAP | {"references": [{"at": {"ipc": "full"}, "value": 1.5, "note": "odd"}]},
        ]
    )
    assert REPORT_ITEMS.validate_json(REPORT_ITEMS.dump_json(items)) == items


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"rows": ["strategy"]}, "exactly one of the keys"),
        (TABLE | {"figure": "f"}, "exactly one of the keys"),
        (TABLE | {"table": "../t"}, "pattern"),
        (TABLE | {"metric": "top5"}, "top1_h"),
        (TABLE | {"rwos": []}, "Extra inputs"),
        (TABLE | {"rows": []}, "at least 1"),
        (TABLE | {"columns": ["strategy"]}, "stands twice"),
        (TABLE | {"columns": ["seed"]}, "aggregate over seeds"),
        (TABLE | {"steps": [1, 2]}, "put `step` in rows or columns"),
        (TABLE | {"steps": [0], "rows": ["step"]}, "greater than or equal to 1"),
        (TABLE | {"metrics": {"a": "top1_h", "b": "top1_g"}}, "put `metric` in rows"),
        (TABLE | {"ratio": {"field": "ipc", "of": 1, "to": 2}}, "neither rows nor columns"),
        (TABLE | {"ratio": {"field": "strategy", "of": "B", "to": "B"}}, "with itself"),
        (
            TABLE
            | {"rows": ["metric"], "metrics": {"g": "top1_g", "h": "top1_h"}}
            | {"ratio": {"field": "metric", "of": "h", "to": "standard"}},
            "'standard' is not one of",
        ),
        (FIGURE | {"x": "strategy"}, "stands twice"),
        (FIGURE | {"panel": "strategy"}, "stands twice"),
        (FIGURE | {"x": "ipc", "smooth": "lowess"}, "only with x: step"),
        (FIGURE | {"steps": [10]}, "only when x is a field"),
        (FIGURE | {"x": "ipc", "steps": [10, 20]}, "make `step` hue"),
        (FIGURE | {"scale": "cubic"}, "'linear' or 'log'"),
        (TABLE | {"bold": "gain"}, "bold: gain needs a ratio"),
        (TABLE | {"bold": "max"}, "'row_max', 'column_max' or 'gain'"),
        (TABLE | {"heads": {"ipc": "Images"}}, "neither rows nor columns"),
        (TABLE | {"reference": "/tmp/t.csv"}, "pattern"),
        (TABLE | {"reference": "t.txt"}, "pattern"),
        (TABLE | {"references": [{"at": {}}]}, "neither a value nor a review_value"),
        (TABLE | {"references": [{"at": {}, "value": float("nan")}]}, "finite number"),
        (TABLE | {"references": [{"at": {}, "review_value": 1, "std": 1}]}, "std without a value"),
        (FIGURE | {"y": "ipc"}, "y: only with kind: heatmap"),
        (HEATMAP | {"y": "teacher.accuracy"}, "two different fields|stands twice"),
        (HEATMAP | {"x": "step"}, "two different fields"),
        (HEATMAP | {"hue": "strategy"}, "hue: not in a heat map"),
        (HEATMAP | {"fit": "power"}, "fit: not in a heat map"),
        (FIGURE | {"fit": "power"}, "only when x is a field"),
        (FIGURE | {"x": "ipc", "fit": "power", "metric": "train_kl"}, "the metric a top-1"),
    ],
)
def test_what_cannot_be_shown_is_refused(item: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        one(item)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_accepted(metric: str) -> None:
    item = one(TABLE | {"metric": metric})
    assert isinstance(item, TableItem)
    assert item.metric == metric


@pytest.mark.parametrize("model", [TableItem, FigureItem])
def test_every_field_is_described_for_editors(model: type[TableItem | FigureItem]) -> None:
    schema = model.model_json_schema()["properties"]
    assert all(schema[name].get("description") for name in schema)


def test_where_takes_a_value_a_list_and_null() -> None:
    item = one(TABLE | {"where": {"ipc": "full", "teacher.accuracy": [None, 60]}})
    assert item.accepts({"ipc": "full", "teacher.accuracy": 60.0})
    assert item.accepts({"ipc": "full", "teacher.accuracy": None})
    assert not item.accepts({"ipc": "full", "teacher.accuracy": 30.0})
    assert not item.accepts({"ipc": 10, "teacher.accuracy": 60.0})


def test_unknown_fields_are_named_and_pseudo_fields_are_not() -> None:
    item = one(TABLE | {"rows": ["step", "stratgy"], "where": {"icp": 1}})
    assert unknown_fields(item, frozenset({"strategy", "teacher.accuracy"})) == ["stratgy", "icp"]


@pytest.mark.parametrize(
    ("field", "value", "label", "alone"),
    [
        ("revision.eta", None, "no LR", "no LR"),
        ("revision.eta", 0.8, "0.8", "LR, η 0.8"),
        ("revision.only_wrong", True, "wrong targets", "wrong targets"),
        ("selection.method", None, "no DS", "no DS"),
        ("selection.method", "el2n", "EL2N", "DS by EL2N"),
        ("selection.fraction", 0.8, "80%", "selected 80%"),
        ("label_noise", 0.1, "10%", "wrong labels 10%"),
        ("teacher.label_noise", None, "the student's", "teacher's wrong labels the student's"),
        (
            "teacher.backbone", '{"name":"resnet50","width":16}', "ResNet-50, width 16",
            "ResNet-50, width 16 teacher",
        ),
    ],
)  # fmt: skip
def test_settings_of_the_second_study_in_its_words(field, value, label, alone):
    assert value_label(field, value) == label
    assert phrase(field, value) == alone

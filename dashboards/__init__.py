"""Reads a store and writes what it says: tables, figures, an HTML page. Knows nothing of training.

    results ──▶ cells ──▶ tables   ┐
       │   │      └─────▶ figures  ├──▶ report (files, page)  layout: what a sweep asks to be shown
       │   └────────────▶ claims   │                          claim_layout: what the paper claims
       └────────▶ aggregates       ┘                          statistics: numbers over seeds

Imported names load on first use: the sweep specification needs `layout` alone, and pandas, seaborn
and statsmodels take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "CellGroup",
    "ClaimItem",
    "FigureItem",
    "Plan",
    "ReportError",
    "ReportItem",
    "ReportPaths",
    "ReportText",
    "Results",
    "TableItem",
    "aggregate",
    "judge",
    "load_plan",
    "load_results",
    "report_text",
    "write_report",
]

_HOME = {
    "CellGroup": "aggregates",
    "ClaimItem": "claim_layout",
    "FigureItem": "layout",
    "Plan": "results",
    "ReportError": "errors",
    "ReportItem": "layout",
    "ReportPaths": "report",
    "ReportText": "report",
    "Results": "results",
    "TableItem": "layout",
    "aggregate": "aggregates",
    "judge": "claims",
    "load_plan": "results",
    "load_results": "results",
    "report_text": "report",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

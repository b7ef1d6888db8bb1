"""What a harness run found, as a table for people and JSON for later."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.chaos.kinds import KILLS, Fault, Kind
from tests.chaos.verdict import Verdict

__all__ = ["Played", "as_table", "totals", "write_json"]


@dataclass
class Played:
    """A scene that is over. error: why it did not get to its end; skipped: why it did not begin."""

    scene: str
    round: int
    sweep: str
    seconds: float
    faults: list[Fault]
    verdict: Verdict
    error: str = ""
    skipped: str = ""
    folder: str = ""

    @property
    def is_clean(self) -> bool:
        return not self.error and self.verdict.is_clean


def _rows(played: Sequence[Played]) -> dict[Kind, dict[str, Any]]:
    rows: dict[Kind, dict[str, Any]] = {}
    for kind in Kind:
        hit = [(one, fault) for one in played for fault in one.faults if fault.kind is kind]
        scenes = {id(one): one for one, _ in hit}.values()
        worst = max((fault.lost_steps for _, fault in hit), default=0)
        rows[kind] = {
            "count": len(hit),
            "kills": len(hit) if kind in KILLS else 0,
            "in_ddp": sum(fault.in_ddp for _, fault in hit),
            "lost_steps": worst,
            "interval_steps": max((one.verdict.interval_steps for one in scenes), default=0),
            "wrong_numbers": sum(bool(one.verdict.wrong_numbers) for one in scenes),
            "retrained": sum(len(one.verdict.retrained) for one in scenes),
            "tracking": sum(bool(one.verdict.tracking) for one in scenes),
            "unclean_scenes": sum(not one.is_clean for one in scenes),
        }
    return rows


def totals(played: Sequence[Played]) -> dict[str, int]:
    rows = _rows(played)
    kills = [fault for one in played for fault in one.faults if fault.kind in KILLS]
    return {
        "scenes": sum(not one.skipped for one in played),
        "faults": sum(row["count"] for row in rows.values()),
        "kills": len(kills),
        "kills_in_ddp": sum(fault.in_ddp for fault in kills),
        "kinds": sum(row["count"] > 0 for row in rows.values()),
        "kinds_three_times": sum(row["count"] >= 3 for row in rows.values()),
        "wrong_numbers": sum(bool(one.verdict.wrong_numbers) for one in played),
        "retrained": sum(len(one.verdict.retrained) for one in played),
        "tracking": sum(bool(one.verdict.tracking) for one in played),
        "unclean_scenes": sum(not one.is_clean and not one.skipped for one in played),
    }


def as_table(played: Sequence[Played]) -> Table:
    table = Table(title="Faults and what they cost", title_justify="left")
    table.add_column("kind")
    heads = ("count", "kills", "in DDP", "lost steps", "of interval", "wrong numbers")
    for head in (*heads, "re-trained", "MLflow", "unclean scenes"):
        table.add_column(head, justify="right")
    for kind, row in _rows(played).items():
        if row["count"]:
            table.add_row(str(kind), *(str(value) for value in row.values()))
    summed = totals(played)
    bad = (summed[name] for name in ("wrong_numbers", "retrained", "tracking", "unclean_scenes"))
    table.add_section()
    table.add_row(
        "all", str(summed["faults"]), str(summed["kills"]), str(summed["kills_in_ddp"]), "", "",
        *map(str, bad),
    )  # fmt: skip
    return table


def write_json(path: Path, played: Sequence[Played], facts: dict[str, Any]) -> None:
    """Whole or not at all: it is written after every scene."""
    content = {
        **facts,
        "totals": totals(played),
        "kinds": {str(kind): row for kind, row in _rows(played).items()},
        "scenes": [
            asdict(one) | {"faults": [_fault(fault) for fault in one.faults]} for one in played
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "kind": str(fault.kind), "what": fault.what, "in_ddp": fault.in_ddp,
        "lost_steps": fault.lost_steps, "lost_s": round(fault.lost_s, 3),
    }  # fmt: skip

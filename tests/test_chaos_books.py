"""The fault harness's own arithmetic: what a fault cost, what a table counts, what repeats."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import pytest

from tests.chaos.files import spoilt
from tests.chaos.flights import Flight, charge, flights
from tests.chaos.harness import are_reached, passes
from tests.chaos.inject.records import RECORD
from tests.chaos.kinds import Fault, Kind
from tests.chaos.table import Played, totals, write_json
from tests.chaos.verdict import Verdict

RUN = "student-0123456789abcdef"


def flight(first: int, last: int, saved: int, at_s: float, pid: int = 1) -> Flight:
    return Flight(RUN, 0, pid, first, last, saved, 10, at_s, at_s + 5.0, at_s + 4.0)


def test_a_fault_is_charged_with_the_steps_that_were_trained_again() -> None:
    fault = Fault(Kind.TRIAL, 5.0, RUN)
    assert charge([flight(1, 37, 30, 0.0), flight(31, 120, 120, 9.0)], [fault]) == []
    assert (fault.lost_steps, fault.lost_s) == (7, 1.0)


def test_a_later_fault_is_not_charged() -> None:
    faults = [Fault(Kind.TRIAL, 5.0, RUN), Fault(Kind.CLOCK, 10.0, "")]
    charge([flight(1, 37, 30, 0.0), flight(31, 120, 120, 9.0)], faults)
    assert [fault.lost_steps for fault in faults] == [7, 0]


def test_what_a_damaged_file_took_along_is_charged_to_the_damage() -> None:
    damage = Fault(Kind.METRICS, 6.0, f"runs/{RUN}/metrics.parquet, truncated")
    notice = Fault(Kind.SIGTERM, 8.0, "")
    charge([flight(1, 120, 120, 0.0), flight(1, 120, 120, 9.0)], [damage, notice])
    assert (damage.lost_steps, notice.lost_steps) == (120, 0)


def test_a_saved_step_that_is_trained_again_is_noticed() -> None:
    (line,) = charge([flight(1, 37, 30, 0.0), flight(21, 120, 120, 9.0)], [])
    assert line == f"{RUN} went on at 21, though 30 was saved"


def test_records_are_read_back_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    (tmp_path / "flights").mkdir()
    late, early = RECORD.pack(1, 9, 5, 5, 8.0, 9.0, 8.5), RECORD.pack(3, 4, 2, 0, 1.0, 2.0, 1.0)
    (tmp_path / "flights" / f"{RUN}.0.11.1").write_bytes(late)
    (tmp_path / "flights" / f"{RUN}.1.12.1").write_bytes(early)
    (tmp_path / "flights" / f"{RUN}.1.13.1").write_bytes(b"")  # killed before its first word
    first, second = flights(tmp_path)
    assert (first.rank, first.pid, first.steps) == (1, 12, 2)
    assert (second.last, second.saved, second.widest) == (9, 5, 5)


@pytest.mark.parametrize("seed", range(20))
def test_damage_always_changes_the_bytes(seed: int) -> None:
    content = bytes(range(50))
    damaged, how = spoilt(content, random.Random(seed))
    assert damaged != content
    assert (len(damaged) < len(content)) == (how == "truncated")


def test_equal_seeds_give_equal_scenes() -> None:
    def names(seed: int) -> list[str]:
        return [act.name for _, act in islice(passes(seed), 60)]

    assert names(1) == names(1)
    assert names(1) != names(2)


def played(*kinds: Kind, in_ddp: bool = False, error: str = "") -> Played:
    faults = [Fault(kind, 0.0, "", in_ddp=in_ddp) for kind in kinds]
    return Played("scene", 0, "alone", 1.0, faults, Verdict(), error=error)


def test_goals() -> None:
    enough = [played(*Kind, *Kind, *Kind), played(*[Kind.WORKER] * 45, in_ddp=True)]
    assert are_reached(enough)
    assert totals(enough)["kills"] == 15 + 45
    assert not are_reached(enough[:1])


def test_results_are_written_whole(tmp_path: Path) -> None:
    scenes = [played(Kind.NAN), played(Kind.HEAD, error="waited in vain")]
    scenes[0].verdict.wrong_numbers.append("strategies.csv")
    write_json(tmp_path / "results" / "chaos.json", scenes, {"seconds": 3})
    found = json.loads((tmp_path / "results" / "chaos.json").read_text())
    assert found["totals"]["faults"] == 2
    assert found["totals"]["unclean_scenes"] == 2
    assert found["kinds"]["NaN in the loss"]["wrong_numbers"] == 1
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["chaos.json"]

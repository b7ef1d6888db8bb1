"""A time limit: what is understood, where it comes from, what may still begin."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.budget import Chance, Limit, parse_budget, parse_slurm_time, reserve_s
from orchestrator.errors import UserError
from orchestrator.overheads import Overheads, read_overheads, write_overheads
from orchestrator.store import Store
from orchestrator.timelimit import ask_squeue, slurm_left_s, time_limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25m", 1500),
        ("1h30m", 5400),
        ("90s", 90),
        ("2h", 7200),
        ("1.5h", 5400),
        ("1d 2h", 93_600),
        (" 3M ", 180),
        ("none", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["25x", "0", "0m", "-5m", "90", "m", "", "1m2h", "inf", "nan"])
def test_what_is_no_duration_is_one_error_with_status_2(text: str) -> None:
    with pytest.raises(UserError, match="--budget") as caught:
        parse_budget(text)
    assert caught.value.exit_status == 2
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12:05\n", 725),
        ("1:02:03", 3723),
        ("2-00:00:10", 172_810),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_what_squeue_prints(text: str, seconds: float | None) -> None:
    assert parse_slurm_time(text) == seconds


# -- where it comes from ---------------------------------------------------------------------------


def never(job: str) -> str:
    raise AssertionError(f"squeue was asked about {job}")


def test_slurms_end_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.clock.now_s", lambda: 1_000.0)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "4600"}
    assert slurm_left_s(job, never) == 3600
    assert slurm_left_s({**job, "SLURM_JOB_END_TIME": "900"}, never) == 1  # over: nothing begins
    assert slurm_left_s({}, never) is None


def test_an_older_slurm_is_asked() -> None:
    asked = []

    def squeue(job: str) -> str:
        asked.append(job)
        return "10:00\n"

    assert slurm_left_s({"SLURM_JOB_ID": "7"}, squeue) == 600
    assert asked == ["7"]
    assert slurm_left_s({"SLURM_JOB_ID": "7"}, lambda job: "") is None


def test_a_slurm_without_squeue_limits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("squeue")

    monkeypatch.setattr(subprocess, "run", absent)
    assert ask_squeue("7") == ""


def test_the_option_goes_before_slurm_and_none_turns_both_off() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "0"}
    limit = time_limit("25m", job, Overheads(), never)
    assert limit is not None
    assert (limit.total_s, limit.said) == (1500, "--budget 25m")
    assert limit.end_s <= time.monotonic() + 1500  # the process is some seconds old
    assert time_limit("none", job, Overheads(), never) is None
    assert time_limit(None, {}, Overheads(), never) is None
    slurm = time_limit(None, {"SLURM_JOB_ID": "7"}, Overheads(), lambda job: "1:00:00")
    assert slurm is not None
    assert (slurm.total_s, slurm.said) == (3600, "Slurm job 7")


# -- what is kept for the end ----------------------------------------------------------------------


def test_the_reserve_is_what_the_end_took_before_and_half_as_much_again() -> None:
    assert reserve_s(50, None) == 25
    assert reserve_s(180, None) == 30
    assert reserve_s(1500, None) == 75
    assert reserve_s(86_400, None) == 120
    assert reserve_s(86_400, 4.0) == 20
    assert reserve_s(180, 40.0) == 60
    assert reserve_s(180, 400.0) == 90  # something may always be trained
    assert reserve_s(30, 400.0) == 20


def test_a_slow_start_keeps_more_for_the_end() -> None:
    assert HOUR.ready(60.0) == HOUR
    assert HOUR.ready(140.0).stop_at == 3460
    assert HOUR.ready(3000.0).stop_at == 1800
    assert replace(HOUR, began_s=2940.0).ready(3000.0).stop_at == 3500


def test_overheads_are_kept_in_the_store_beside_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_overheads(store).ending_s is None
    write_overheads(store, Overheads(opening_s=8.0, stopping_s=2.0, closing_s=6.0))
    write_overheads(store, Overheads(closing_s=7.0))
    assert read_overheads(store) == Overheads(opening_s=8.0, stopping_s=2.0, closing_s=7.0)
    assert read_overheads(store).ending_s == 9
    store.write_bytes(paths.overheads(), b"{")
    assert read_overheads(store) == Overheads()


# -- what may begin --------------------------------------------------------------------------------

HOUR = Limit(total_s=3600, end_s=3600, reserve_s=100)


def test_the_moments_of_a_limit_come_in_order() -> None:
    assert HOUR.stop_at == 3500
    assert HOUR.stop_at < HOUR.leave_at < HOUR.end_s


@pytest.mark.parametrize(
    ("now", "needed_s", "saves", "chance"),
    [
        (0, 3000, True, Chance.ENDS),
        (0, 3400, True, Chance.PROGRESSES),  # by a hair: estimates are not that good
        (0, 30_000, True, Chance.PROGRESSES),  # more than a tenth of it
        (0, 40_000, True, Chance.NONE),  # less than a tenth
        (0, 30_000, False, Chance.NONE),  # nothing of it would be kept
        (3400, 50, True, Chance.ENDS),
        (3400, 100, True, Chance.PROGRESSES),  # 90 s of it
        (3440, 100, True, Chance.NONE),  # 50 s: not a minute
        (3440, 30, False, Chance.ENDS),
        (3400, None, True, Chance.PROGRESSES),
        (3440, None, True, Chance.NONE),
        (3495, 0.1, True, Chance.NONE),
        (4000, 0.1, True, Chance.NONE),
    ],
)
def test_what_may_begin(now: float, needed_s: float | None, saves: bool, chance: Chance) -> None:
    assert HOUR.chance(now, 10, needed_s, saves) is chance


@pytest.mark.parametrize(
    ("now", "needed_s", "chance"),
    [
        (0, 1700, Chance.ENDS),
        (0, 3000, Chance.PROGRESSES),  # a student's end, by the same seconds
        (3400, 50, Chance.PROGRESSES),
        (3440, 30, Chance.NONE),  # not a minute, and perhaps it takes an hour
        (0, None, Chance.PROGRESSES),
    ],
)
def test_a_search_ends_only_where_there_is_time_for_twice_as_much(
    now: float, needed_s: float | None, chance: Chance
) -> None:
    assert HOUR.chance(now, 10, needed_s, True, is_search=True) is chance


def test_in_a_short_budget_a_quarter_of_its_training_is_worth_a_start() -> None:
    short = Limit(total_s=60, end_s=60, reserve_s=20)
    assert short.useful_s == 10
    assert short.chance(10, 5, None, True) is Chance.PROGRESSES
    assert short.chance(26, 5, None, True) is Chance.NONE

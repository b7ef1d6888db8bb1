"""Two records of one run: what agrees is added, what does not is a conflict. Without any store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from orchestrator.bundlemerge import merge, merge_plans
from orchestrator.runrecord import RunRecord

NAN = float("nan")
STUDENT, TEACHER = "student", "teacher"


def rows(*steps: int, **columns: Any) -> pa.Table:
    """Rows whose values follow from their step. columns: values that do not."""
    return pa.Table.from_pylist(
        [
            {"step": step, "top1_h": step / 8, "train_kl": NAN, "timestamp_ms": 1000 + step}
            | columns
            for step in steps
        ]
    )


def record(*steps: int, kind: str = STUDENT, done: bool = True, **facts: Any) -> RunRecord:
    """A run that was trained to its last step. facts: of its result."""
    request = {"horizon": steps[-1], "evaluate_at": [], "presets": [], "validate_every": 1}
    result = {"horizon": steps[-1], "step": steps[-1], **facts}
    return RunRecord(
        name=f"{kind}-{'0' * 16}", key="0" * 64, kind=kind, spec={}, label="", request=request,
        result=result if done else None, snapshots={}, table=rows(*steps),
    )  # fmt: skip


def teacher(*steps: int, presets: dict[str, int], missing: tuple[float, ...] = ()) -> RunRecord:
    """presets: step by preset."""
    found = {
        preset: {"step": step, "accuracy": float(preset), "alpha": 1.0, "digest": f"{step:064x}"}
        for preset, step in presets.items()
    }
    made = record(*steps, kind=TEACHER, presets=found, missing=list(missing), searched_to=steps[-1])
    asked = [*map(float, presets), *missing]
    return changed(made, snapshots=found, request={**(made.request or {}), "presets": asked})


def changed(one: RunRecord, **fields: Any) -> RunRecord:
    return replace(one, **fields)


def steps_of(one: RunRecord) -> list[int]:
    assert one.table is not None
    return list(one.table["step"].to_pylist())


def test_a_run_that_is_not_here_is_new() -> None:
    theirs = record(10, 20)
    assert merge(None, theirs).record == theirs
    assert merge(None, theirs).action == "new"


@pytest.mark.parametrize(
    ("ours", "theirs", "action", "steps"),
    [
        ((10, 20), (10, 20), "same", [10, 20]),
        ((10,), (10, 20), "grown", [10, 20]),
        ((10, 20), (10,), "same", [10, 20]),
        ((10, 20), (5, 10, 20), "grown", [5, 10, 20]),
        ((5, 20), (10, 20), "grown", [5, 10, 20]),
    ],
    ids=["equal", "longer", "shorter", "denser", "other steps"],
)
def test_records_that_agree(
    ours: tuple[int, ...], theirs: tuple[int, ...], action: str, steps: list[int]
) -> None:
    merged = merge(record(*ours), record(*theirs))
    assert merged.action == action
    assert steps_of(merged.record) == steps
    assert merged.record.result is not None
    assert merged.record.result["horizon"] == max(*ours, *theirs)


def test_who_computed_a_row_does_not_matter() -> None:
    theirs = changed(record(10, 20), table=rows(10, 20, timestamp_ms=7, wall_time_s=9.0))
    assert merge(record(10, 20), theirs).action == "same"


def test_a_column_that_only_one_knows_does_not_matter() -> None:
    theirs = changed(record(10, 20), table=rows(10, 20, new_column=3.0))
    merged = merge(record(10), theirs)
    assert merged.action == "grown"
    assert merged.record.table is not None
    assert merged.record.table["new_column"].to_pylist() == [None, 3.0]


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (changed(record(10, 20), table=rows(10, 20, top1_h=2.0)), "top1_h at step 10: here 1.25"),
        (changed(record(10, 20), table=rows(10, 20, train_kl=1.0)), "train_kl at step 10"),
        (record(5, 15), "no step is in both records"),
        (record(10, 20, teacher_digest="b" * 64), "learnt from another snapshot"),
    ],
    ids=["a number", "no number", "nothing in common", "another teacher"],
)
def test_records_that_do_not_agree(theirs: RunRecord, said: str) -> None:
    ours = record(10, 20, teacher_digest="a" * 64)
    merged = merge(ours, theirs)
    assert (merged.action, merged.record) == ("conflict", ours)
    assert said in merged.reason


def test_what_was_cut_off_here_is_completed() -> None:
    merged = merge(record(10, done=False), record(10, 20))
    assert merged.action == "grown"
    assert merged.record.result is not None
    assert merge(record(10, 20), record(10, 20, done=False)).action == "same"


class TestTeachers:
    def test_presets_add_up(self) -> None:
        merged = merge(
            teacher(1, 2, 3, presets={"20": 2}, missing=(90.0,)),
            teacher(1, 2, 3, 4, 5, presets={"20": 2, "40": 5}),
        )
        assert merged.action == "grown"
        assert merged.record.snapshots.keys() == {"20", "40"}
        result, request = merged.record.result, merged.record.request
        assert result is not None
        assert request is not None
        assert result["presets"].keys() == {"20", "40"}
        # Nobody looked for 90% beyond step 3: it is neither found nor known to be out of reach.
        assert (result["missing"], result["searched_to"], request["presets"]) == ([], 5, [20, 40])

    def test_in_vain_as_far_as_both_looked(self) -> None:
        merged = merge(teacher(1, 2, presets={"20": 2}), teacher(1, 2, presets={}, missing=(90.0,)))
        assert merged.record.result is not None
        assert merged.record.snapshots.keys() == {"20"}

    def test_another_snapshot_is_a_conflict(self) -> None:
        merged = merge(teacher(1, 2, 3, presets={"20": 2}), teacher(1, 2, 3, presets={"20": 3}))
        assert "step of snapshot 20: here 2, there 3" in merged.reason

    def test_another_rule_is_a_conflict(self) -> None:
        theirs = teacher(1, 2, presets={"20": 2})
        theirs = changed(theirs, request={**(theirs.request or {}), "validate_every": 5})
        merged = merge(teacher(1, 2, presets={"20": 2}), theirs)
        assert "teacher.validate_every: here 1, there 5" in merged.reason


class TestPlans:
    def plan(self, *seeds: int, **others: Any) -> dict[str, Any]:
        """As a sweep over these seeds is written: what does not vary stands once."""
        varies = len(seeds) > 1
        return {
            "sweep": "demo",
            "settings": {"dataset": "digits"} | ({} if varies else {"seed": seeds[0]}),
            "fields": ["strategy", *(["seed"] if varies else [])],
            "points": [
                {
                    "run": f"student-{strategy}{seed}",
                    "settings": {"strategy": strategy} | ({"seed": seed} if varies else {}),
                    "horizon": 20,
                }
                for strategy in "AB"
                for seed in seeds
            ],
            "report": [],
            **others,
        }

    def test_points_add_up(self) -> None:
        assert merge_plans(None, self.plan(0)) == self.plan(0)
        assert merge_plans(self.plan(0), self.plan(1)) == self.plan(0, 1)
        assert merge_plans(self.plan(0, 1), self.plan(2)) == self.plan(0, 1, 2)

    def test_a_part_adds_nothing(self) -> None:
        ours = self.plan(0, 1)
        assert merge_plans(ours, self.plan(1)) is ours

    def test_another_report_is_another_sweep(self) -> None:
        assert merge_plans(self.plan(0), self.plan(1, report=[{"table": "t"}])) is None

    def test_other_runs_for_equal_settings(self) -> None:
        """Of another data set by the same name, say: a mean over both would mean nothing."""
        theirs = self.plan(0, 1)
        theirs["points"][0]["run"] = "student-other"
        assert merge_plans(self.plan(0), theirs) is None

    def scheduled(self, *steps: list[int], seeds: tuple[int, ...]) -> dict[str, Any]:
        """Strategy A's points are evaluated at the first of these, B's at the last."""
        plan = self.plan(*seeds, schedules=list(steps))
        for point in plan["points"]:
            is_a = point["settings"]["strategy"] == "A"
            point["schedule"] = 0 if is_a else len(steps) - 1
        return plan

    def test_schedules_are_numbered_anew(self) -> None:
        ours = self.scheduled([10, 20], [5, 20], seeds=(0,))
        theirs = self.scheduled([5, 20], seeds=(1,))
        merged = merge_plans(ours, theirs)
        assert merged is not None
        assert merged["schedules"] == [[10, 20], [5, 20]]
        asked = {point["run"]: point["schedule"] for point in merged["points"]}
        assert asked == {"student-A0": 0, "student-A1": 1, "student-B0": 1, "student-B1": 1}
        assert merge_plans(ours, self.scheduled([10, 20], [5, 20], seeds=(1,))) == self.scheduled(
            [10, 20], [5, 20], seeds=(0, 1)
        )

    def test_a_plan_of_before_says_nothing_of_schedules(self) -> None:
        now = self.scheduled([10, 20], seeds=(0, 1))
        assert merge_plans(self.plan(0, 1), now) == self.plan(0, 1)
        merged = merge_plans(self.plan(0), now)
        assert merged is not None
        assert [point.get("schedule") for point in merged["points"]] == [None, 0, None, 0]

"""The fault harness in little, as `make test-slow` runs it: nearly every kind of fault once, three
minutes. All of it, with clusters, servers and disks, is `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.acts import ACTS, SHORT
from tests.chaos.harness import Harness, complaints
from tests.chaos.kinds import Kind

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.slow
@pytest.mark.parametrize("act", SHORT, ids=lambda act: act.name)
def test_nothing_is_lost_and_no_number_changes(act, tmp_path: Path) -> None:
    harness = Harness(tmp_path, seed=0)
    played = harness.play(act)
    assert not played.skipped
    assert complaints(played) == []
    assert played.faults


def test_every_kind_has_a_scene() -> None:
    """By the sources: a kind that nobody injects would only be seen as a zero in the table."""
    sources = "".join(
        file.read_text() for file in (Path(__file__).parent / "chaos").glob("*.py")
        if file.name not in ("kinds.py", "table.py", "verdict.py")
    )  # fmt: skip
    assert [kind.name for kind in Kind if f"Kind.{kind.name}" not in sources] == []
    assert len({act.name for act in ACTS}) == len(ACTS)

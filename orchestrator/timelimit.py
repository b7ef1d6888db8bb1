"""Where a run's time limit comes from: `--budget`, else what Slurm leaves of the job's time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping

from orchestrator import clock
from orchestrator.budget import Limit, parse_budget, parse_slurm_time, reserve_s
from orchestrator.overheads import Overheads

__all__ = ["ask_squeue", "slurm_left_s", "time_limit"]


def time_limit(
    budget: str | None,
    environment: Mapping[str, str],
    overheads: Overheads,
    ask: Callable[[str], str] | None = None,
) -> Limit | None:
    """None where nobody limits it. A budget counts from the start of this process, and goes before
    Slurm's limit. ask: what squeue says of a job (`ask_squeue`). Raises UserError for a budget that
    is no duration."""
    now = time.monotonic()
    began = now - clock.process_age_s()
    if budget is not None:
        seconds = parse_budget(budget)
        if seconds is None:
            return None
        end_s, said = began + seconds, f"--budget {budget}"
    else:
        left_s = slurm_left_s(environment, ask or ask_squeue)
        if left_s is None:
            return None
        seconds, end_s = left_s, now + left_s
        said = f"Slurm job {environment['SLURM_JOB_ID']}"
    reserve = reserve_s(seconds, overheads.ending_s)
    return Limit(total_s=seconds, end_s=end_s, reserve_s=reserve, said=said, began_s=began)


def slurm_left_s(environment: Mapping[str, str], ask: Callable[[str], str]) -> float | None:
    """Seconds that Slurm leaves this job. SLURM_JOB_END_TIME (seconds since the epoch) is there
    since Slurm 22.05; earlier ones are asked through squeue. None outside of Slurm, and in a job
    without a limit."""
    job = environment.get("SLURM_JOB_ID", "")
    if not job:
        return None
    try:
        return max(1.0, float(environment["SLURM_JOB_END_TIME"]) - clock.now_s())
    except (KeyError, ValueError):
        return parse_slurm_time(ask(job))


def ask_squeue(job: str) -> str:
    """What squeue prints of the time left to a job; nothing where there is no squeue to answer."""
    command = ["squeue", "-h", "-j", job, "-o", "%L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout

"""`targetsweep store export` and `import` on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from orchestrator.bundleexport import export_bundle
from orchestrator.bundleimport import Imported, import_bundles
from orchestrator.bundleweights import Limits
from orchestrator.errors import TargetsweepError
from orchestrator.node_cache import NodeCache
from orchestrator.store import Store

__all__ = ["ConflictsError", "export_store", "import_store", "refuse_conflicts", "show_cache"]

_SHOWN = 20


class ConflictsError(TargetsweepError):
    """Some runs of a bundle say other numbers than the store; those were left as they were."""


def export_store(
    console: Console, store: Store, out: str, asked: Sequence[str], limits: Limits, note: str
) -> None:
    done = export_bundle(store, out, asked, limits, note)
    runs = ", ".join(f"{count:,} {kind}" for kind, count in done.runs.items())
    sweeps = ", ".join(done.sweeps)
    console.print(f"{out} ({done.digest[:16]}): runs: {runs}; sweeps: {sweeps}", soft_wrap=True)
    if limits.teacher_mb is not None:
        console.print(f"weights of {done.weights:,} teacher snapshots go along")
    if limits.checkpoint_mb is not None:
        console.print(f"checkpoints of {done.checkpoints:,} runs go along")
    for line in done.unfit:
        console.print(f"left out: {line}", style="yellow", soft_wrap=True, markup=False)
    if done.left_out:
        console.print(f"{done.left_out:,} runs are not complete and were left out")
    for name in done.damaged:
        console.print(f"warning: {name} is damaged and was left out", style="yellow")


def import_store(console: Console, store: Store, bundles: Sequence[str]) -> None:
    """Raises ConflictsError (exit status 1) after everything that agrees was imported."""
    imported = import_bundles(store, bundles)
    for done in imported:
        counts = ", ".join(
            f"{done.runs[action]:,} {said}"
            for action, said in _ACTIONS.items()
            if done.runs[action]
        )
        console.print(f"{done.place} ({done.digest[:16]}): runs: {counts}", soft_wrap=True)
        for note in done.notes:
            console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False)
    refuse_conflicts(imported)
    console.print("targetsweep report writes the tables anew, targetsweep sync tells MLflow")


def refuse_conflicts(imported: Sequence[Imported]) -> None:
    """Raises ConflictsError where a bundle said other numbers of a run that is there."""
    conflicts = [line for done in imported for line in _conflict_lines(done)]
    if conflicts:
        raise ConflictsError(
            "\n".join(conflicts) + "\n  the store's own numbers were kept; to keep both, import "
            "the bundle into another store and report from there"
        )


_ACTIONS = {
    "new": "new",
    "grown": "completed or made longer",
    "same": "there already",
    "conflict": "in conflict",
}


def _conflict_lines(done: Imported) -> list[str]:
    if not done.conflicts:
        return []
    head = f"{done.place}: runs with other numbers than the store's, {len(done.conflicts)}:"
    lines = [head, *(f"  {line}" for line in done.conflicts[:_SHOWN])]
    if len(done.conflicts) > _SHOWN:
        lines.append(f"  … and {len(done.conflicts) - _SHOWN} more")
    return lines


def show_cache(console: Console, store: Store, *, clear: bool) -> None:
    if store.is_local:
        console.print(f"{store.uri} is a folder: nothing of it is copied", soft_wrap=True)
        return
    copies = NodeCache(store.uri)
    folder, count, num_bytes = copies.usage()
    if clear:
        copies.clear()
    done = "removed from" if clear else "in"
    console.print(f"{count:,} copies, {num_bytes / 1e6:,.1f} MB, {done} {folder}", soft_wrap=True)

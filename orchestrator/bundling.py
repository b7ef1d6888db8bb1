"""`run --export`: what there is so far, as a bundle, whenever a run ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from orchestrator.bundlefile import is_free
from orchestrator.errors import StoreError, UserError
from orchestrator.store import Store

__all__ = ["BundleExport", "check_place", "export_so_far"]


@dataclass(frozen=True)
class BundleExport:
    """out: folder or .zip file. with_weights: also the teachers' snapshots and every run's last
    checkpoint, within the sizes that `store export` takes by itself."""

    out: str
    with_weights: bool = False


def check_place(out: str) -> None:
    """Before anything starts. Raises UserError where something that is no bundle lies already."""
    place = Store(out)
    if not out.endswith(".zip") and place.is_local and not is_free(place.root):
        raise UserError(
            f"--export {out}: something else is there", "give a new folder, or a bundle's"
        )


def export_so_far(
    console: Console, store: Store, export: BundleExport, sweeps: Sequence[str]
) -> None:
    """The complete runs of the sweeps. Where there is nothing yet, or it cannot be written, it says
    so: the store has everything all the same."""
    from orchestrator.bundleweights import MAX_CHECKPOINT_MB, MAX_TEACHER_MB, Limits
    from orchestrator.storecommands import export_store

    every = Limits(teacher_mb=MAX_TEACHER_MB, checkpoint_mb=MAX_CHECKPOINT_MB)
    try:
        export_store(console, store, export.out, sweeps, every if export.with_weights else Limits())
    except (StoreError, UserError) as error:
        console.print(f"warning: no bundle: {error}", style="yellow", soft_wrap=True, markup=False)

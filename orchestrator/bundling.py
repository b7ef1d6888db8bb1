"""`run --export`: what there is so far, as a bundle, whenever a run ends."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from orchestrator.bundlefile import check_zip, is_free, is_zip, zip_place
from orchestrator.errors import StoreError, UserError
from orchestrator.store import Store

__all__ = ["BundleExport", "check_place", "export_so_far"]


_PROBE = "probe.tmp"


@dataclass(frozen=True)
class BundleExport:
    """out: folder or .zip file. with_weights: also the teachers' snapshots and every run's last
    checkpoint, within the sizes that `store export` takes by itself."""

    out: str
    with_weights: bool = False


def check_place(out: str) -> None:
    """Before anything starts. Raises UserError where something that is no bundle lies already, and
    where nothing can be written: hours later nobody may be there to give another place."""
    if is_zip(out):
        check_zip(out)
        place, _ = zip_place(out)
    else:
        place = Store(out)
        if place.is_local and not is_free(place.root):
            raise UserError(
                f"--export {out}: something else is there", "give a new folder, or a bundle's"
            )
    try:
        _try_to_write(place)
    except (OSError, StoreError) as error:
        raise UserError(
            f"--export {out}: nothing can be written there ({error})", "give another place"
        ) from error


def _try_to_write(place: Store) -> None:
    """In the nearest folder that is there, so that one which is not stays away until it is used."""
    if not place.is_local:
        place.write_bytes(_PROBE, b"")
        place.delete(_PROBE)
        return
    found = place.root
    while not found.exists():
        found = found.parent
    with tempfile.TemporaryFile(dir=found):
        pass


def export_so_far(
    console: Console, store: Store, export: BundleExport, sweeps: Sequence[str]
) -> UserError | None:
    """The complete runs of the sweeps. Where there is nothing yet, or it cannot be written, it says
    so and returns why: the store has everything all the same."""
    from orchestrator.bundleweights import MAX_CHECKPOINT_MB, MAX_TEACHER_MB, Limits
    from orchestrator.storecommands import export_store

    every = Limits(teacher_mb=MAX_TEACHER_MB, checkpoint_mb=MAX_CHECKPOINT_MB)
    try:
        export_store(console, store, export.out, sweeps, every if export.with_weights else Limits())
    except UserError as error:
        console.print(f"warning: no bundle: {error}", style="yellow", soft_wrap=True, markup=False)
        return error
    return None

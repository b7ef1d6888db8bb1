"""The sub-commands `data` and `store`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli_options import DEFAULT_STORE, StoreOption, screen
from orchestrator.errors import UserError
from orchestrator.store import Store

__all__ = ["data_app", "store_app"]

data_app = typer.Typer(help="Data sets of a store.", no_args_is_help=True)
store_app = typer.Typer(help="A store's soundness; bundles of its results.", no_args_is_help=True)


@data_app.command()
def prepare(
    name: Annotated[
        str, typer.Argument(help="digits, cifar10, cifar100, tinyimagenet, imagenet, or yours")
    ],
    path: Annotated[str | None, typer.Option(help="folder with its files")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="decode to so many pixels; default: as they are")
    ] = None,
    encoded: Annotated[
        bool,
        typer.Option(
            "--encoded",
            help="keep pictures of any sizes encoded, in shards, and decode while training; "
            "so it is anyway for imagenet, and where decoded images would exceed 8 GiB",
        ),
    ] = False,
    shorter_side: Annotated[
        int | None,
        typer.Option(min=1, help="resize larger pictures to it once, and keep them encoded"),
    ] = None,
    jpeg_quality: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="encode all pictures again; default: the bytes stay, 90 if resized"
        ),
    ] = None,
    subset: Annotated[
        bool, typer.Option("--subset", help="take a part of imagenet for a data set of its own")
    ] = False,
    image_column: Annotated[
        str | None, typer.Option(help="of Parquet files; default: image or img")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="of Parquet files; default: label or fine_label")
    ] = None,
    download: Annotated[bool, typer.Option(help="fetch the official archive")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Brings a data set into the store, once; continues where it was killed."""
    from orchestrator.datasets import Location
    from orchestrator.status import prepare_named

    location = Location(
        path=Path(path).expanduser() if path else None,
        image_size=image_size,
        image_column=image_column,
        label_column=label_column,
        encoded=encoded,
        shorter_side=shorter_side,
        jpeg_quality=jpeg_quality,
        subset=subset,
    )
    prepare_named(screen(), Store(store), name, location, download=download)


@store_app.command(name="export")
def export_(
    out: Annotated[str, typer.Option(help="folder, good for git, or file ending in .zip")],
    sweep: Annotated[
        list[str] | None, typer.Option(help="name; may be repeated; default: all")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    teachers: Annotated[
        bool, typer.Option("--teachers", help="with the snapshots that its students learn from")
    ] = False,
    max_teacher_mb: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="of one snapshot; what is larger goes as a copy in 16-bit floats, or not; "
            "default 25",
        ),
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="with each run's last state, to go on elsewhere")
    ] = False,
    max_checkpoint_mb: Annotated[
        float | None, typer.Option(min=0.0, help="of one state; larger ones stay; default 200")
    ] = None,
    note: Annotated[
        str, typer.Option(help="how the runs were made, for docs/results.md: the command, the day")
    ] = "",
) -> None:
    """Writes what was measured, with checksums: results for other machines. No weights but where
    asked."""
    from orchestrator.bundleweights import MAX_CHECKPOINT_MB, MAX_TEACHER_MB, Limits
    from orchestrator.storecommands import export_store

    limits = Limits(
        teacher_mb=_limit(teachers, "teachers", max_teacher_mb, MAX_TEACHER_MB),
        checkpoint_mb=_limit(checkpoints, "checkpoints", max_checkpoint_mb, MAX_CHECKPOINT_MB),
    )
    export_store(screen(), Store(store), out, sweep or [], limits, note)


def _limit(is_asked: bool, name: str, limit_mb: float | None, default_mb: float) -> float | None:
    if limit_mb is not None and not is_asked:
        option = f"--max-{name.removesuffix('s')}-mb"
        raise UserError(f"{option} {limit_mb:g} has nothing to limit", f"give --{name} too")
    if not is_asked:
        return None
    return default_mb if limit_mb is None else limit_mb


@store_app.command(name="import")
def import_(
    bundles: Annotated[list[str], typer.Argument(help="folders or .zip files of `store export`")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Adds bundles to a store, verified first; what differs is shown and left as it was."""
    from orchestrator.storecommands import import_store

    import_store(screen(), Store(store), bundles)


@store_app.command()
def check(
    store: StoreOption = DEFAULT_STORE,
    repair: Annotated[
        bool, typer.Option("--repair", help="set damaged files aside; run makes them again")
    ] = False,
    seal: Annotated[
        bool, typer.Option("--seal", help="first seal a store of before files had checksums")
    ] = False,
) -> None:
    """Reads every file that has a checksum, and names those that are damaged."""
    from orchestrator.storecheck import check_store

    check_store(screen(), Store(store), repair=repair, seal=seal)


@store_app.command()
def cache(
    store: StoreOption = DEFAULT_STORE,
    clear: Annotated[
        bool, typer.Option("--clear", help="remove the copies; nothing may run here meanwhile")
    ] = False,
) -> None:
    """Says what this machine keeps of a remote store, for readers that map files."""
    from orchestrator.storecommands import show_cache

    show_cache(screen(), Store(store), clear=clear)

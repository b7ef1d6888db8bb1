"""The command line: options in, one call, exit status out. What commands do stands elsewhere."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.errors import TargetsweepError, UserError
from orchestrator.store import Store
from trainers.errors import TrainerError

if TYPE_CHECKING:
    from orchestrator.sweeping import Asked

__all__ = ["app", "main"]

app = typer.Typer(
    help="Runs a paper's whole grid of teachers and students on Ray, and gives its tables back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Data sets of a store.", no_args_is_help=True)
app.add_typer(data_app, name="data")
store_app = typer.Typer(help="Bundles of a store's results.", no_args_is_help=True)
app.add_typer(store_app, name="store")

Files = Annotated[list[str], typer.Argument(help="sweep files (YAML)")]
StoreOption = Annotated[
    str,
    typer.Option("--store", envvar="TARGETSWEEP_STORE", help="folder or URI that holds everything"),
]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", help="scale file: makes a pilot of each sweep")
]
Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", help="only points with field=value[,value]; may be repeated"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="field=value for every grid; may be repeated")
]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", help="NAME=PATH of a data set's files")
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; default: the store's own"
    ),
]
_DEFAULT_STORE = "store"


def _console() -> Console:
    # Without a terminal, lines are for logs: not folded at 80 columns.
    return Console(width=None if sys.stdout.isatty() else 200)


@app.command()
def plan(
    files: Files,
    store: StoreOption = _DEFAULT_STORE,
    scale: ScaleOption = None,
    limit: Limits = None,
    set_: Overrides = None,
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
    calibrate: Annotated[bool, typer.Option(help="measure steps/s here for the estimate")] = False,
    save_rates: Annotated[
        str | None, typer.Option(help="keep what --calibrate measured, under this name")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="estimate with the rates kept under this name")
    ] = None,
) -> None:
    """What a run would do: cells, unique runs, what sharing saves, what is left, how long."""
    from orchestrator.planning import Planning

    if save_rates and not calibrate:
        raise UserError("--save-rates has nothing to keep", "give --calibrate too")
    planning = Planning(_asked(files, scale, limit, set_, data), Store(store))
    if calibrate:
        planning.calibrate(Console(stderr=True), save_rates)
    if device:
        planning.take_rates(device)
    if as_json:
        print(json.dumps(planning.to_json(), indent=2))
    else:
        planning.show(_console())


def _asked(
    files: list[str],
    scale: str | None,
    limit: list[str] | None,
    set_: list[str] | None,
    data: list[str] | None,
) -> Asked:
    from orchestrator.sweeping import Asked

    return Asked(
        files=files, scale=scale, limits=limit or (), overrides=set_ or (), data=data or ()
    )


@app.command()
def run(
    files: Files,
    store: StoreOption = _DEFAULT_STORE,
    scale: ScaleOption = None,
    limit: Limits = None,
    set_: Overrides = None,
    data: DataOption = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="one-worker runs at once; default: what fits")
    ] = None,
    workers_per_run: Annotated[
        int | None, typer.Option(min=1, help="workers of every run; default: scaling.workers")
    ] = None,
    gpus_per_run: Annotated[
        float, typer.Option(min=0.01, help="0.5: two runs share a GPU; 4: four workers a run")
    ] = 1.0,
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="auto or host:port of a cluster; default: here"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a run; default 1, reproducible")
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile the models")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, help="seconds between checkpoints")
    ] = 60.0,
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="plan, start nothing")] = False,
) -> None:
    """Runs what is left of the sweeps. Run it again to resume: nothing finished is done twice."""
    from orchestrator.driver import DriveOptions
    from orchestrator.planning import Planning
    from orchestrator.sweeping import run_sweeps

    asked, place = _asked(files, scale, limit, set_, data), Store(store)
    if dry_run:
        Planning(asked, place).show(_console())
        return
    options = DriveOptions(
        concurrency=concurrency,
        workers_per_run=workers_per_run,
        gpus_per_run=gpus_per_run,
        ray_address=ray_address,
        threads=threads,
        compile=compile_,
        checkpoint_every_s=checkpoint_every,
    )
    run_sweeps(asked, place, options, _console(), tracking_uri=tracking_uri)


app.command(name="resume", help="The same as run: what the store holds is not done again.")(run)


@app.command()
def status(store: StoreOption = _DEFAULT_STORE) -> None:
    """What the store holds of each sweep, and who drives it."""
    from orchestrator.status import show_status

    show_status(_console(), Store(store))


@app.command()
def report(
    sweeps: Annotated[list[str] | None, typer.Argument(help="names; default: all")] = None,
    store: StoreOption = _DEFAULT_STORE,
    scale: ScaleOption = None,
    out: Annotated[str | None, typer.Option(help="another folder for the report")] = None,
) -> None:
    """Writes tables and figures from the store alone, complete or not."""
    from orchestrator.status import report_sweeps

    report_sweeps(_console(), Store(store), sweeps or [], out, scale)


@app.command()
def sync(
    store: StoreOption = _DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Rebuilds MLflow from the store: adds what is missing, closes what a killed driver left."""
    from orchestrator.status import sync_store

    sync_store(_console(), Store(store), tracking_uri)


@app.command()
def ui(
    store: StoreOption = _DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 5000,
    tracking_uri: TrackingUri = None,
) -> None:
    """Opens the MLflow UI over the database; of a tracking server, says where its own is."""
    from orchestrator import tracking
    from orchestrator.tracking_client import redacted

    place = Store(store)
    uri = tracking.tracking_uri(place, tracking_uri)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow at {redacted(uri)}: its server has the UI")
        return
    artifacts = str(place.root / "mlartifacts") if place.is_local else "./mlartifacts"
    arguments = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    arguments += ["--backend-store-uri", uri]
    arguments += ["--default-artifact-root", artifacts]
    print(f"MLflow at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, arguments)


@app.command()
def doctor(
    store: StoreOption = _DEFAULT_STORE,
    data: DataOption = None,
    ray_address: Annotated[str | None, typer.Option(envvar="RAY_ADDRESS")] = None,
) -> None:
    """Says what is there and what is missing, with a remedy for each."""
    from orchestrator.status import show_checks

    show_checks(_console(), Store(store), data or [], ray_address)


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
    store: StoreOption = _DEFAULT_STORE,
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
    prepare_named(_console(), Store(store), name, location, download=download)


@store_app.command(name="export")
def export_(
    out: Annotated[str, typer.Option(help="folder, good for git, or file ending in .zip")],
    sweep: Annotated[
        list[str] | None, typer.Option(help="name; may be repeated; default: all")
    ] = None,
    store: StoreOption = _DEFAULT_STORE,
) -> None:
    """Writes what was measured, without weights, with checksums: results for other machines."""
    from orchestrator.storecommands import export_store

    export_store(_console(), Store(store), out, sweep or [])


@store_app.command(name="import")
def import_(
    bundles: Annotated[list[str], typer.Argument(help="folders or .zip files of `store export`")],
    store: StoreOption = _DEFAULT_STORE,
) -> None:
    """Adds bundles to a store, verified first; what differs is shown and left as it was."""
    from orchestrator.storecommands import import_store

    import_store(_console(), Store(store), bundles)


@app.command(hidden=True)
def schema() -> None:
    """Prints the JSON schema of sweep files (sweeps/schema.json)."""
    from orchestrator.sweepschema import json_schema

    print(json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False))


def main() -> None:
    """Entry point: errors a person made are one message, not a traceback. SIGTERM, which schedulers
    send, is a Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except TargetsweepError as error:
        print(f"targetsweep: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except TrainerError as error:  # raised outside trials: data, targets or a device
        print(f"targetsweep: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("targetsweep: stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

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

from orchestrator.cli_cluster import add_cluster_commands
from orchestrator.cli_options import (
    DEFAULT_STORE,
    AcceleratorOption,
    Budget,
    CheckpointEvery,
    Compile,
    Concurrency,
    CudaGraphs,
    DataOption,
    Export,
    ExportWeights,
    Files,
    GpusPerRun,
    HangAfter,
    Limits,
    MetricsHost,
    MetricsPort,
    Overrides,
    RayAddress,
    ScaleOption,
    StoreOption,
    Threads,
    TrackingUri,
    WorkersPerRun,
    screen,
)
from orchestrator.cli_store import data_app, store_app
from orchestrator.errors import TargetsweepError, UserError
from orchestrator.lasting import lasting_screen
from orchestrator.redaction import redacting_screen
from orchestrator.store import Store, refuse_absent
from trainers.errors import TrainerError

if TYPE_CHECKING:
    from orchestrator.asked import Asked
    from orchestrator.budget import Limit
    from orchestrator.bundling import BundleExport
    from orchestrator.driver import DriveOptions

__all__ = ["app", "main"]

app = typer.Typer(
    help="Runs a paper's whole grid of teachers and students on Ray, and gives its tables back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")


@app.command()
def plan(
    files: Files,
    store: StoreOption = DEFAULT_STORE,
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
    budget: Annotated[
        str | None, typer.Option(help="what a run of so long would fill, as 25m or 1h30m")
    ] = None,
    concurrency: Concurrency = None,
) -> None:
    """What a run would do: cells, unique runs, what sharing saves, what is left, how long."""
    from orchestrator.budget import parse_budget
    from orchestrator.planning import Planning

    seconds = parse_budget(budget) if budget else None
    if concurrency and seconds is None:
        raise UserError("--concurrency says how many runs a budget is for", "give --budget too")
    if save_rates and not calibrate:
        raise UserError("--save-rates has nothing to keep", "give --calibrate too")
    planning = Planning(_asked(files, scale, limit, set_, data), Store(store))
    if calibrate:
        planning.calibrate(Console(stderr=True), save_rates)
    if device:
        planning.take_rates(device)
    if seconds is not None:
        planning.limit(seconds, concurrency)
    if as_json:
        print(json.dumps(planning.to_json(), indent=2))
    else:
        planning.show(screen())


def _asked(
    files: list[str],
    scale: str | None,
    limit: list[str] | None,
    set_: list[str] | None,
    data: list[str] | None,
) -> Asked:
    from orchestrator.asked import Asked

    return Asked(
        files=files, scale=scale, limits=limit or (), overrides=set_ or (), data=data or ()
    )


@app.command()
def run(
    files: Files,
    store: StoreOption = DEFAULT_STORE,
    scale: ScaleOption = None,
    limit: Limits = None,
    set_: Overrides = None,
    data: DataOption = None,
    accelerator: AcceleratorOption = "auto",
    concurrency: Concurrency = None,
    workers_per_run: WorkersPerRun = None,
    gpus_per_run: GpusPerRun = None,
    ray_address: RayAddress = None,
    threads: Threads = None,
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = True,
    checkpoint_every: CheckpointEvery = 60.0,
    hang_after: HangAfter = 900.0,
    budget: Budget = None,
    export: Export = None,
    export_weights: ExportWeights = False,
    tracking_uri: TrackingUri = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="plan, start nothing")] = False,
) -> None:
    """Runs what is left of the sweeps. Run it again to resume: nothing finished is done twice."""
    from orchestrator.driver import DriveOptions
    from orchestrator.overheads import read_overheads
    from orchestrator.sweeping import run_sweeps
    from orchestrator.timelimit import time_limit

    bundle = _bundle(export, export_weights)
    asked, place = _asked(files, scale, limit, set_, data), Store(store)
    time = time_limit(budget, os.environ, read_overheads(place))
    options = DriveOptions(
        accelerator=accelerator,
        concurrency=concurrency,
        workers_per_run=workers_per_run,
        gpus_per_run=gpus_per_run,
        ray_address=ray_address,
        threads=threads,
        compile=compile_,
        cuda_graphs=cuda_graphs,
        checkpoint_every_s=checkpoint_every,
        hang_after_s=hang_after,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
    )
    if dry_run:
        _show_plan(asked, place, options, time)
        return
    run_sweeps(
        asked,
        place,
        options,
        lasting_screen(),
        tracking_uri=tracking_uri,
        limit=time,
        export=bundle,
    )


def _bundle(out: str | None, weights: bool) -> BundleExport | None:
    from orchestrator.bundling import BundleExport

    if weights and out is None:
        raise UserError("--export-weights says what a bundle holds", "give --export too")
    return None if out is None else BundleExport(out, weights)


def _show_plan(asked: Asked, store: Store, options: DriveOptions, limit: Limit | None) -> None:
    """`run --dry-run`: nothing is started."""
    from orchestrator.driver import check_options
    from orchestrator.planning import Planning

    check_options(options)
    planning = Planning(asked, store)
    if limit is not None:
        planning.limit(limit.total_s, options.concurrency)
    planning.show(screen())


app.command(name="resume", help="The same as run: what the store holds is not done again.")(run)
add_cluster_commands(app, run)


@app.command()
def status(store: StoreOption = DEFAULT_STORE) -> None:
    """What the store holds of each sweep, and who drives it."""
    from orchestrator.status import show_status

    show_status(screen(), Store(store))


@app.command()
def report(
    sweeps: Annotated[list[str] | None, typer.Argument(help="names; default: all")] = None,
    store: StoreOption = DEFAULT_STORE,
    scale: ScaleOption = None,
    out: Annotated[str | None, typer.Option(help="another folder for the report")] = None,
    hardware: Annotated[
        str,
        typer.Option(help="only runs made on it: a name as the report has it, or 'NVIDIA H*'"),
    ] = "",
    precision: Annotated[str, typer.Option(help="only runs in it: fp32 or bf16")] = "",
) -> None:
    """Writes tables and figures from the store alone, complete or not."""
    from orchestrator.status import report_sweeps

    report_sweeps(
        screen(), Store(store), sweeps or [], out, scale, hardware=hardware, precision=precision
    )


@app.command()
def results(
    bundles: Annotated[list[str], typer.Argument(help="bundles: folders or zip files")],
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("docs/results.md"),
) -> None:
    """One page of all that bundles have measured, made from them alone."""
    from orchestrator.resultspage import write_results

    write_results(screen(), bundles, out)


@app.command()
def sync(
    store: StoreOption = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Rebuilds MLflow from the store: adds what is missing, closes what a killed driver left."""
    from orchestrator.status import sync_store

    sync_store(screen(), Store(store), tracking_uri)


@app.command()
def ui(
    store: StoreOption = DEFAULT_STORE,
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
    if not tracking_uri:
        refuse_absent(place)  # else MLflow makes a folder, a database and an empty page
    artifacts = str(place.root / "mlartifacts") if place.is_local else "./mlartifacts"
    arguments = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    arguments += ["--backend-store-uri", uri]
    arguments += ["--default-artifact-root", artifacts]
    print(f"MLflow at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, arguments)


@app.command()
def doctor(
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    ray_address: Annotated[str | None, typer.Option(envvar="RAY_ADDRESS")] = None,
) -> None:
    """Says what is there and what is missing, with a remedy for each."""
    from orchestrator.status import show_checks

    show_checks(screen(), Store(store), data or [], ray_address)


@app.command(hidden=True)
def schema() -> None:
    """Prints the JSON schema of sweep files (sweeps/schema.json)."""
    from orchestrator.sweepschema import json_schema

    print(json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False))


def main() -> None:
    """Entry point: errors a person made are one message, not a traceback. SIGTERM, which schedulers
    send, is a Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    redacting_screen()
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

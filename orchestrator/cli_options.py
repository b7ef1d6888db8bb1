"""The options that several commands share or that need words, and what they all print to."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.devices import Accelerator

__all__ = [
    "DEFAULT_STORE",
    "AcceleratorOption",
    "Budget",
    "CheckpointEvery",
    "Compile",
    "Concurrency",
    "CudaGraphs",
    "DataOption",
    "Export",
    "ExportWeights",
    "Files",
    "GpusPerRun",
    "HangAfter",
    "Limits",
    "MetricsHost",
    "MetricsPort",
    "Overrides",
    "RayAddress",
    "ScaleOption",
    "StoreOption",
    "Threads",
    "TrackingUri",
    "WorkersPerRun",
    "screen",
]

DEFAULT_STORE = "store"

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

AcceleratorOption = Annotated[
    Accelerator,
    typer.Option(
        "--accelerator",
        help="what runs train on: auto, GPUs if there are any at the start; gpu, GPUs, and a "
        "cluster's first one is waited for; cpu, CPUs whatever there is",
    ),
]
Concurrency = Annotated[
    int | None, typer.Option(min=1, help="one-worker runs at once; default: what fits")
]
WorkersPerRun = Annotated[
    int | None, typer.Option(min=1, help="workers of every run; default: scaling.workers")
]
GpusPerRun = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="0.5: two runs share a GPU; 4: four workers a run; default: scaling.gpus_per_worker",
    ),
]

Budget = Annotated[
    str | None,
    typer.Option(
        help="the command is over by then, as 25m, 1h30m, 90s; default: what Slurm leaves of its "
        "job, if there is one; none: no limit"
    ),
]
Export = Annotated[
    str | None, typer.Option(help="write what is complete as a bundle at the end: folder or .zip")
]
RayAddress = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="auto or host:port of a cluster; default: here"),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of a run; default 1, reproducible")
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the models")]
CudaGraphs = Annotated[
    bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="replay captured steps on GPUs")
]
CheckpointEvery = Annotated[float, typer.Option(min=0.0, help="seconds between checkpoints")]
HangAfter = Annotated[
    float, typer.Option(min=1.0, help="seconds without a step after which a run is ended")
]
MetricsPort = Annotated[
    int | None, typer.Option(min=1, max=65535, help="serve Prometheus metrics at this port")
]
MetricsHost = Annotated[str, typer.Option(help="address to serve them at; 0.0.0.0 is any")]
ExportWeights = Annotated[
    bool,
    typer.Option(
        "--export-weights",
        help="that bundle with teacher snapshots and checkpoints: goes on elsewhere",
    ),
]


def screen() -> Console:
    # Without a terminal, lines are for logs: not folded at 80 columns.
    return Console(width=None if sys.stdout.isatty() else 200)

"""The commands about a sweep that runs elsewhere: submit, stop.

`submit` takes the options of `run`, read from `run` itself, and gives them back as the command line
of the job: an option of `run` that is added later is one of `submit` at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from orchestrator.cli_options import DEFAULT_STORE, StoreOption, screen
from orchestrator.store import Store

__all__ = ["NOT_PASSED_ON", "add_cluster_commands", "arguments_of"]

NOT_PASSED_ON = ("ray_address", "dry_run")
"""Options of `run` that a job does not take over: it runs on its own cluster."""

JobAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="the cluster's job server; default: http://127.0.0.1:8265",
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow", help="show what the job writes, and end as it ends")
]


def add_cluster_commands(app: typer.Typer, run: Callable[..., None]) -> None:
    app.command(name="submit")(_submit_like(run))
    app.command()(stop)


def _submit_like(run: Callable[..., None]) -> Callable[..., None]:
    """`submit`, with the signature of `run` less NOT_PASSED_ON, and two options of its own."""
    hints = get_type_hints(run, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(run).parameters.items()
        if name not in NOT_PASSED_ON
    ]
    for name, annotation, default in (
        ("ray_address", JobAddress, None),
        ("follow", Follow, False),
    ):
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, annotation=annotation, default=default))

    def submit(**values: Any) -> None:
        """Runs the sweeps as a job of a Ray cluster: this machine may go meanwhile."""
        _submit(run, values)

    submit.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    submit.__annotations__ = {one.name: one.annotation for one in parameters}
    return submit


def _submit(run: Callable[..., None], values: dict[str, Any]) -> None:
    from orchestrator.jobs import Submission, refuse_secrets, submit_sweeps, visible_store

    address, follow = values.pop("ray_address"), values.pop("follow")
    values["tracking_uri"] = refuse_secrets(screen(), values["store"], values["tracking_uri"])
    submission = Submission(
        files=values["files"],
        scale=values["scale"],
        store=values["store"],
        data=values["data"] or (),
        address=address,
        arguments=lambda files, scale: arguments_of(run, values | {"files": files, "scale": scale}),
    )
    with visible_store(submission.store) as (seen, is_real):
        submission.check()
        run(**values | {"store": seen.uri, "ray_address": None, "dry_run": True})
        submit_sweeps(screen(), submission, seen if is_real else None, follow=follow)


def arguments_of(run: Callable[..., None], values: Mapping[str, Any]) -> list[str]:
    """The command line that gives `run` these values; defaults are left out."""
    found: list[str] = []
    app = typer.Typer()
    app.command()(run)
    for parameter in typer.main.get_command(app).params:
        name = str(parameter.name)
        if name not in values or name in NOT_PASSED_ON:
            continue
        value = values[name]
        if parameter.param_type_name == "argument":
            found += [str(one) for one in value]
        elif isinstance(value, bool):
            if value != parameter.default:
                found.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif value is not None and value != parameter.default:
            for one in value if isinstance(value, list | tuple) else [value]:
                found += [parameter.opts[0], str(one)]
    return found


def stop(
    store: StoreOption = DEFAULT_STORE,
    wait: Annotated[bool, typer.Option(help="until nobody drives the store any more")] = True,
    timeout: Annotated[
        float, typer.Option(min=0.0, help="seconds to wait; 0: as long as it takes")
    ] = 0.0,
    now: Annotated[
        bool, typer.Option("--now", help="end the Ray job too; loses what no checkpoint has")
    ] = False,
    ray_address: JobAddress = None,
) -> None:
    """Asks whoever drives the store, on whatever machine, to save checkpoints and end."""
    from orchestrator.stopcommand import stop_driver

    stop_driver(
        screen(), Store(store), wait=wait, timeout_s=timeout or None, now=now, address=ray_address
    )

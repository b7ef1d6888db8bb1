"""Measured rates: steps/s and images/s of a device by kind of run, kept as JSON under a name.

`plan --calibrate --save-rates NAME` writes `rates/NAME.json` into the store; `plan --device NAME`
reads it there, or where this package ships it (`sweeps/rates/`). A rate is measured or absent:
none is guessed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from orchestrator import paths
from orchestrator.errors import StoreError, UserError
from orchestrator.store import Store
from trainers.spec import Backbone

__all__ = [
    "EVALUATION", "Group", "Rate", "Rates", "load_rates", "rates_path", "save_rates",
    "shipped_rates",
]  # fmt: skip

EVALUATION = "evaluation"
"""What stands for the strategy where images/s are meant, of a model in evaluation mode."""


@dataclass(frozen=True)
class Group:
    """Runs that take about equally long a step. strategy: A, B, C, teacher, probe, or evaluation.
    image_size: pixels; None where the data set is unknown. workers, share: how many, and what each
    had of a device. hardware: empty of what trains here, or of the device that all rates are of."""

    dataset: str
    backbone: Backbone
    batch_size: int
    strategy: str
    image_size: int | None = None
    precision: str = "fp32"
    workers: int = 1
    share: float = 1.0
    hardware: str = ""

    @property
    def kind(self) -> Group:
        """The same on one whole device of those here."""
        return dataclasses.replace(self, workers=1, share=1.0, hardware="")

    @property
    def devices(self) -> float:
        return self.workers * self.share


@dataclass(frozen=True)
class Rate:
    """per_s: steps (of evaluation: images) a second. n: steps (batches) that were timed."""

    per_s: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Rates:
    """steps: by a stopwatch around single steps of one worker that has a whole device, evaluation
    apart. runs: steps/s of whole runs, evaluation included. left_out: groups that were too slow to
    measure, or too large. about: device, versions, date, for people."""

    steps: Mapping[Group, Rate] = field(default_factory=dict)
    runs: Mapping[Group, float] = field(default_factory=dict)
    left_out: tuple[Group, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Rates) -> Rates:
        """Both; where both know a group, `other`."""
        return Rates(
            steps={**self.steps, **other.steps},
            runs={**self.runs, **other.runs},
            left_out=(*self.left_out, *other.left_out),
            about={**self.about, **other.about},
        )


def rates_path(name: str) -> str:
    return f"rates/{paths.safe_name(name)}.json"


def load_rates(store: Store, name: str) -> Rates:
    """The rates called `name`: the store's, else those that came with the package. Raises UserError
    when there are none, or when they cannot be read."""
    data: Any = store.read_json(rates_path(name))
    data = _shipped(name) if data is None else data
    if data is None:
        raise UserError(
            f"no device is called {name!r} (there are {', '.join(_names(store)) or 'none'})",
            f"measure it on the device: `targetsweep plan … --calibrate --save-rates {name}`",
        )
    return _parsed(name, data)


def shipped_rates() -> Rates:
    """Those that came with the package: of one device, and so good to compare kinds of runs that
    nobody measured on another."""
    return _parsed(_COMPARED, _shipped(_COMPARED))


_COMPARED = "xeon-2-cores"


def _shipped(name: str) -> Any:
    """None where nothing of this name came with the package."""
    file = resources.files("sweeps").joinpath("rates", f"{paths.safe_name(name)}.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _parsed(name: str, data: Any) -> Rates:
    try:
        about = {key: str(value) for key, value in data["about"].items()}
        steps = {_group(row): Rate(float(row["per_s"]), int(row["n"])) for row in data["rates"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"rates of {name!r} cannot be read: {error!r}") from error
    return Rates(steps=steps, about=about)


def save_rates(store: Store, name: str, rates: Rates) -> str:
    """Writes them, beside what the store has under this name of other groups; gives the path."""
    if store.read_json(rates_path(name)) is not None:
        rates = load_rates(store, name) | rates
    rows = [_row(group, rate) for group, rate in rates.steps.items()]
    store.write_json(rates_path(name), {"about": dict(rates.about), "rates": rows})
    return rates_path(name)


def _names(store: Store) -> list[str]:
    shipped = [file.name for file in resources.files("sweeps").joinpath("rates").iterdir()]
    names = {*store.list("rates"), *shipped}
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _row(group: Group, rate: Rate) -> dict[str, Any]:
    unit = "images" if group.strategy == EVALUATION else "steps"
    fields = dataclasses.asdict(group)
    for name in ("workers", "share", "hardware"):  # a stopwatch's steps are of one whole device
        del fields[name]
    return {**fields, "unit": unit, "per_s": round(rate.per_s, 5), "n": rate.n}


def _group(row: Mapping[str, Any]) -> Group:
    return Group(
        dataset=row["dataset"],
        backbone=Backbone(**row["backbone"]),
        batch_size=int(row["batch_size"]),
        strategy=row["strategy"],
        image_size=row["image_size"],
        precision=row["precision"],
    )

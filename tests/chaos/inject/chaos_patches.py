"""What the harness changes inside the processes under test. Nothing of this is in the product.

Three things: a flight recorder (which step each process has reached, and which are saved), orders
(at that step of that run: a NaN, no memory, for ever asleep …, once), and a clock that jumps.
Folder: CHAOS_FOLDER, with `flights/`, `orders/*.json`, `spent/` and `clock`.
"""

import json
import mmap
import os
import signal
import struct
import time as _real_time
from pathlib import Path

from records import RECORD

FOLDER = Path(os.environ["CHAOS_FOLDER"])

_unit = None  # which unit this process executes
_record = None
_flights = 0


def patch(module):
    """A module of ours was imported just now."""
    _shift_clock(module)
    if module.__name__ == "orchestrator.worker":
        _wrap_execute(module)
    elif module.__name__ == "trainers.engine":
        _wrap_update(module.Engine)
    elif module.__name__ == "orchestrator.records":
        _wrap_save(module.Records)


# -- the flight recorder ---------------------------------------------------------------------------


class _Flight:
    """One engine's record, in a file that outlives the process."""

    def __init__(self, unit, rank, first):
        global _flights
        _flights += 1
        path = FOLDER / "flights" / f"{unit}.{rank}.{os.getpid()}.{_flights}"
        with path.open("wb+") as file:
            file.truncate(RECORD.size)
            self._map = mmap.mmap(file.fileno(), RECORD.size)
        now = _real_time.monotonic()
        self.values = [first, first - 1, first - 1, 0, now, now, now]
        self._write()

    def _write(self):
        RECORD.pack_into(self._map, 0, *self.values)

    def reached(self, step):
        self.values[1], self.values[5] = step, _real_time.monotonic()
        self._write()

    def saved(self, step):
        self.values[3] = max(self.values[3], step - self.values[2])
        self.values[2], self.values[6] = step, _real_time.monotonic()
        self._write()


def _wrap_execute(module):
    execute = module.execute

    def wrapped(store, name, *args, **kwargs):
        global _unit
        _unit = name
        yield from execute(store, name, *args, **kwargs)

    module.execute = wrapped


def _wrap_update(engine_class):
    update = engine_class.update

    def wrapped(self):
        global _record
        if _unit is None:
            return update(self)
        if "_chaos_flight" not in vars(self):
            self._chaos_flight = _record = _Flight(_unit, self.world.rank, self.step + 1)
            self._chaos_orders = _orders(_unit, self.world.rank)
        for order in self._chaos_orders:
            if order["step"] <= self.step + 1 and _take(order):
                _FAULTS[order["fault"]](self)
        update(self)
        self._chaos_flight.reached(self.step)

    engine_class.update = wrapped


def _wrap_save(records_class):
    save = records_class.save_checkpoint

    def wrapped(self, event, rows=None):
        save(self, event, rows)
        if _record is not None:
            _record.saved(event.step)

    records_class.save_checkpoint = wrapped


# -- orders ----------------------------------------------------------------------------------------


def _orders(unit, rank):
    """Those for this unit and worker, read when its engine begins."""
    found = [json.loads(path.read_text()) for path in sorted((FOLDER / "orders").glob("*.json"))]
    return [one for one in found if one["unit"] == unit and one.get("rank", rank) == rank]


def _take(order):
    """Whether this process is the one that carries it out: each order is obeyed once."""
    try:
        (FOLDER / "spent" / order["id"]).open("x").close()
    except FileExistsError:
        return False
    return True


def _nan(engine):
    objective = engine.objective

    def spoilt(model, batch):
        engine.objective = objective
        loss, means = objective(model, batch)
        return loss * float("nan"), means

    engine.objective = spoilt


def _no_memory(engine):
    raise MemoryError("injected: no memory for this step")


def _no_device_memory(engine):
    import torch

    raise torch.OutOfMemoryError("injected: CUDA out of memory")


def _hang(engine):
    while True:
        _real_time.sleep(3600)


def _freeze(engine):
    os.kill(os.getpid(), signal.SIGSTOP)


_FAULTS = {
    "nan": _nan,
    "no memory": _no_memory,
    "no device memory": _no_device_memory,
    "hang": _hang,
    "freeze": _freeze,
}


# -- the clock -------------------------------------------------------------------------------------


class _Clock:
    """The time module, whose wall clock is off by what the harness says just now."""

    def __init__(self):
        self._offset = None

    def __getattr__(self, name):
        return getattr(_real_time, name)

    def offset_ns(self):
        if self._offset is None:
            with (FOLDER / "clock").open("rb") as file:
                self._offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
        return struct.unpack("<q", self._offset[:8])[0]

    def time_ns(self):
        return _real_time.time_ns() + self.offset_ns()

    def time(self):
        return self.time_ns() / 1e9


_CLOCK = _Clock()


def _shift_clock(module):
    """Modules of ours that read the time see the shifted one; Ray and MLflow do not."""
    if getattr(module, "time", None) is _real_time:
        module.time = _CLOCK

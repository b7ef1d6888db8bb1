"""Ray Tune's loop, in a thread of its own: where the cluster's head is gone, Ray's calls do not
come back, and the driver must go on without them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.conductor import Conductor, Conducts
from orchestrator.errors import TargetsweepError
from orchestrator.rayprocesses import labels_that_avoid
from orchestrator.redaction import is_secret_name
from orchestrator.trial import TrialConfig

__all__ = ["TuneGaveUpError", "Tuning", "repeating"]

_LAST_CALL_S = 5.0

_ANY_NUMBER = 1_000_000
"""Trials at once, for Tune. The ledger counts devices, which may become more; Tune only compares
this number with others. Without it Tune keeps one trial pending, and a wide cluster idles."""


class TuneGaveUpError(TargetsweepError):
    """Tune's loop ended by an error of its own. What was saved is in the store."""


class _LeftError(BaseException):
    """Ends Tune's loop from inside of it; no handler of Tune's may catch it."""


class _Guard(Conducts):
    """The conductor, until it is told that nobody listens any more."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self.is_left = False

    def _check(self) -> None:
        if self.is_left:
            raise _LeftError

    def next_trial(self) -> TrialConfig | None:
        self._check()
        return self._conductor.next_trial()

    @property
    def finished(self) -> bool:
        self._check()
        return self._conductor.finished

    def on_report(self, report: dict[str, Any]) -> None:
        self._check()
        self._conductor.on_report(report)

    def on_end(self, unit: str, *, lost: bool, said: str = "") -> None:
        self._check()
        self._conductor.on_end(unit, lost=lost, said=said)


@contextmanager
def repeating(
    call: Callable[[], None], warn: Callable[[str], None], every_s: float = 1.0
) -> Iterator[None]:
    """Calls again and again while the block runs, from a thread of its own, also after a call that
    failed, which is told of once. A call on its way at the end is waited for, unless it hangs: see
    `ClusterView.watching`."""
    end = threading.Event()

    def repeat() -> None:
        told = set()
        while not end.wait(every_s):
            try:
                call()
            except Exception as error:
                text = f"a watch of the driver failed, and goes on: {type(error).__name__}: {error}"
                if text not in told:
                    told.add(text)
                    warn(text)

    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(_LAST_CALL_S)


class Tuning:
    """Drives a conductor's units as trials. folder: for what Tune insists on writing."""

    def __init__(self, conductor: Conductor, folder: str) -> None:
        self._guard = _Guard(conductor)
        self._folder = folder
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tune", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether the loop has ended. Raises what ended it, if it was no end of the work."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def leave(self, seconds: float) -> None:
        """Has the loop end as it stands, and waits so long for that; nothing of it reaches the
        conductor any more."""
        self._guard.is_left = True
        self._thread.join(seconds)

    def _run(self) -> None:
        from ray.tune.error import TuneError

        try:
            _fit(self._guard, self._folder)
        except TuneError as error:
            self._error = TuneGaveUpError(f"Ray Tune gave up: {error}")
            self._error.__cause__ = error
        except _LeftError:
            pass
        except BaseException as error:
            self._error = error


def _fit(conductor: Conducts, folder: str) -> None:
    """Until the searcher says that nothing is left."""
    from ray import tune

    from orchestrator.rayprocesses import survive_memory_monitor
    from orchestrator.searcher import Coroner, UnitSearcher
    from orchestrator.trial import run_trial

    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    survive_memory_monitor()
    _ship_nothing()
    searcher = UnitSearcher(conductor)
    tune.Tuner(
        tune.with_resources(run_trial, _resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=Coroner(searcher),
            max_concurrent_trials=_ANY_NUMBER,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    ).fit()


def _ship_nothing() -> None:
    """Tune sends the driver's AWS keys along with every trial, and Ray writes what it is sent into
    its logs and shows it on its dashboard. Trials have the credentials of their own machine.

    It also sends a variable for PyTorch Lightning. A process that Ray has begun already, ahead of
    the first trial, is not given to one with variables of its own: another one is begun for it."""
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS.clear()
    for name in [name for name in class_cache.ENV_VARS_TO_PROPAGATE if is_secret_name(name)]:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(name)


def _resources(config: dict[str, Any]) -> Any:
    """A one-worker trial holds its device. A distributed one holds none itself: its workers, which
    the ledger admitted, live outside; memory is the resource that every node has. Nodes that were
    set aside are avoided, and so are the processes that are warm there, or anywhere, by then: Tune
    gives a trial none that was asked for in other words."""
    from ray import tune

    bundle = {"CPU": 1.0}
    if config["workers"] > 1:
        bundle = {"memory": 2.0**20}
    elif config["use_gpu"]:
        bundle = {"CPU": 1.0, "GPU": config["devices_per_worker"]}
    selector = labels_that_avoid(config["avoid"])
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=selector and [selector])

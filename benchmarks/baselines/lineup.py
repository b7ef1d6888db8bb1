"""Who takes part in the step benchmark, and why others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from accelerator import usable_cores
from rounds import Contender

from baselines.floor import Floor
from baselines.ours import OurEvaluation, OurStep
from baselines.setting import Setting
from trainers.spec import Strategy

__all__ = ["BASELINES", "LineUp"]

BASELINES: dict[str, Strategy] = {"lightning": "A", "torchdistill": "B"}
"""By name, with the strategy that each is compared with."""

_WORKERS = (0, 1, 2, 4, 8, 16)


@dataclass
class LineUp:
    """steps: those of a turn in which numbers of workers are compared. contenders: each has done a
    step already. left_out: who does not take part, and why. workers: of the baselines' DataLoaders.
    tried: images/s of Lightning by number of workers; the best number serves both baselines.
    """

    setting: Setting
    steps: int
    say: Callable[[str], None]
    contenders: list[Contender] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    workers: int = 0
    tried: dict[int, float] = field(default_factory=dict)

    def add_ours(self, strategies: Sequence[Strategy], *, nchw: bool = False) -> None:
        """The floor, our steps, and the evaluation of strategy A's student. nchw: the floor in that
        layout besides."""
        on_gpu = self.setting.device.type == "cuda"
        self._add("floor", lambda: Floor(self.setting, captured=on_gpu))
        if nchw:
            self._add("floor, NCHW", lambda: Floor(self.setting, captured=on_gpu, nchw=True))
        if on_gpu:
            self._add("floor, eager", lambda: Floor(self.setting, captured=False))
        for strategy in strategies:
            self._add(strategy, lambda strategy=strategy: OurStep(self.setting, strategy))
        for step in self.contenders:
            if isinstance(step, OurStep) and step.name == "A":
                self._add("evaluation", lambda step=step: OurEvaluation(self.setting, step))
                break

    def add_baselines(self, names: Sequence[str], workers: int | None) -> None:
        """workers: of their DataLoaders; None finds the best number for Lightning."""
        self.workers = workers or 0
        if "lightning" in names:
            if workers is None:
                with self._or_left_out("Lightning"):
                    self.workers = self._best_workers()
            self._add("Lightning", self._lightning)
        if "torchdistill" in names:
            self._add("torchdistill", self._torchdistill)

    def close(self) -> None:
        for contender in self.contenders:
            contender.close()

    def _add(self, name: str, make: Callable[[], Contender]) -> None:
        with self._or_left_out(name):
            contender = make()
            contender.turn(1)
            self.contenders.append(contender)

    @contextmanager
    def _or_left_out(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Anything: a lent machine's minutes are not lost because one package fails there.
            self.left_out[name] = f"{type(error).__name__}: {error}".strip()
            self.say(f"{name} is left out: {self.left_out[name]}")

    def _best_workers(self) -> int:
        for self.workers in _WORKERS:
            if self.workers <= usable_cores():
                turn = self._lightning().turn(self.steps)
                self.tried[self.workers] = rate = round(turn.images / turn.wall_s, 1)
                self.say(f"Lightning, {self.workers} workers: {rate:,.0f} images/s")
        return max(self.tried, key=lambda number: self.tried[number])

    # Imported where they are used: the baselines are no dependency of the project.

    def _lightning(self) -> Contender:
        from baselines.lightning_stack import LightningStep

        return LightningStep(self.setting, self.workers)

    def _torchdistill(self) -> Contender:
        from baselines.torchdistill_stack import TorchdistillStep

        return TorchdistillStep(self.setting, self.workers)

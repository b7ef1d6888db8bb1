"""Ray Tune's side of the ledger: hands out units as trials, and passes on what trials say.

Tune asks `suggest` whenever it has room. The answer is a trial configuration, None ("ask again"),
or FINISHED once nothing is left. The state that matters is in the store, so nothing here is saved:
Tune's own resume is never used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.conductor import Conducts

__all__ = ["Coroner", "UnitSearcher"]

_TEXT_CHARS = 20_000


class UnitSearcher(Searcher):
    def __init__(self, conductor: Conducts) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor = conductor
        self._units: dict[str, str] = {}
        self._deaths: dict[str, str] = {}

    def note_death(self, trial_id: str, said: str) -> None:
        """What Ray says of a trial's end, before Tune tells of it here."""
        self._deaths[trial_id] = said

    def suggest(self, trial_id: str) -> Any:
        """A TrialConfig, None or Searcher.FINISHED (a string, which Tune's own type forgets)."""
        if self._conductor.finished:
            return Searcher.FINISHED
        config = self._conductor.next_trial()
        if config is not None:
            self._units[trial_id] = config["unit"]
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "event" in result:
            self._conductor.on_report(result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tune repeats a function's last report here, and only here."""
        if result and "event" in result:
            self._conductor.on_report(result)
        said = self._deaths.pop(trial_id, "")
        self._conductor.on_end(self._units.pop(trial_id), lost=error, said=said)

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    # Tune pickles its searcher into files that it would resume from; ours holds locks and threads.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed by running it again")

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass


class Coroner(FIFOScheduler):
    """Tells the searcher why a trial died, which Tune itself does not: a scheduler hears of it
    first, and finds Ray's words where Tune has just written them."""

    def __init__(self, searcher: UnitSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        try:
            text = Path(trial.error_file).read_text(errors="replace")
        except (OSError, TypeError):  # none was written
            text = ""
        self._searcher.note_death(trial.trial_id, text[-_TEXT_CHARS:])

    def __getstate__(self) -> dict[str, Any]:
        return {}

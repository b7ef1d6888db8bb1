"""Teacher snapshots, as their records in the store tell of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dashboards.store import Store

__all__ = ["Snapshot", "read_snapshots"]


@dataclass(frozen=True, kw_only=True, order=True)
class Snapshot:
    """A teacher snapshot. run: the teacher's run; preset, accuracy in percent; alpha: position
    inside the update that jumped over the window (1: the validated step itself). copy_of: digest of
    the snapshot whose 16-bit copy it is, or empty."""

    run: str
    preset: float
    step: int
    accuracy: float
    alpha: float
    digest: str
    copy_of: str = ""


def read_snapshots(
    files: Store, present: dict[str, set[str]], problems: list[str]
) -> tuple[dict[tuple[str, str], Snapshot], list[Snapshot]]:
    """Every snapshot of the store by (teacher run, preset as in its file name); and of those whose
    record knows of them, the other forms: a copy's original, an original's copies."""
    paths = {
        f"runs/{run}/{file}": run
        for run, names in present.items()
        for file in names
        if file.startswith("snapshots/acc-") and file.endswith(".json")
    }
    found, others = {}, []
    for path, text in files.read_json(sorted(paths), problems).items():
        try:
            snapshot = Snapshot(
                run=paths[path],
                preset=float(text["preset"]),
                step=int(text["step"]),
                accuracy=float(text["accuracy"]),
                alpha=float(text["alpha"]),
                digest=str(text["digest"]),
                copy_of=str(text.get("of", "")),
            )
            original = snapshot.copy_of or snapshot.digest
            others += [
                replace(
                    snapshot,
                    digest=digest,
                    accuracy=float(accuracy),
                    copy_of="" if digest == original else original,
                )
                for digest, accuracy in text.get("also", {}).items()
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{path}: not a snapshot's record ({error!r})")
            continue
        found[snapshot.run, f"{snapshot.preset:g}"] = snapshot
    return found, others

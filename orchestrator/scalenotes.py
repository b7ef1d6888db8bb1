"""What a scale does to a sweep, in sentences: `plan` prints them, plan.json and the report have
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.fieldtypes import plain
from orchestrator.grid import Point
from orchestrator.settings import INDEX

if TYPE_CHECKING:
    from orchestrator.scaling import Scaling
    from orchestrator.spec import Sweep

__all__ = ["MAPPED_LATER", "preset_note", "scale_notes"]

MAPPED_LATER = "teacher columns are mapped onto what the teachers reach, once they are measured"

_DATASET = INDEX["dataset"]
_IPC = INDEX["ipc"]
_SEED = INDEX["seed"]


def scale_notes(sweep: Sweep, fewer: Sweep, scaling: Scaling) -> tuple[str, ...]:
    """sweep: before the scale; fewer: with the seeds and images per class that are left."""
    return tuple(
        [
            *_steps(scaling),
            *_fewer(sweep, fewer, _SEED, "seeds"),
            *_fewer(sweep, fewer, _IPC, "images per class"),
            *_out_of_reach(sweep, scaling),
            *_batches(scaling),
            *_models(sweep.points, scaling),
            *_settings(scaling),
        ]
    )


def _steps(scaling: Scaling) -> Iterator[str]:
    changed = {step: its for step, its in scaling.steps.items() if step != its}
    if changed:
        step, its = max(changed.items())
        yield f"steps: {step:,} becomes {its:,}, earlier ones in proportion"


def _fewer(sweep: Sweep, fewer: Sweep, slot: int, what: str) -> Iterator[str]:
    """sweep.points are not filtered by the scale, fewer.points lack its grids' values."""
    before = {point[slot] for point in sweep.points}
    after = dict.fromkeys(point[slot] for point in fewer.points)
    if len(after) < len(before):
        yield f"{what}: {', '.join(map(str, after))}, of {len(before)} values"


def _out_of_reach(sweep: Sweep, scaling: Scaling) -> Iterator[str]:
    left_out: dict[str, dict[int, None]] = {}
    for point in sweep.points:
        if not scaling.keeps(point):
            left_out.setdefault(point[_DATASET], {})[point[_IPC]] = None
    for dataset, values in left_out.items():
        there = scaling.infos[dataset].smallest_class
        yield (
            f"images per class left out, because a class of this {dataset} has {there}: "
            f"{', '.join(map(str, values))}"
        )


def _batches(scaling: Scaling) -> Iterator[str]:
    changed = [f"{batch} becomes {its}" for batch, its in scaling.batches.items() if batch != its]
    if changed:
        yield f"batches: {', '.join(changed)}"


def _models(points: Sequence[Point], scaling: Scaling) -> Iterator[str]:
    scale = scaling.scale
    names = {point[INDEX["backbone.name"]] for point in points}
    names |= {dict(its)["name"] for point in points if (its := point[INDEX["teacher.backbone"]])}
    for name, choice in scale.backbones.items():
        if name in names:
            width = f" of width {choice['width']}" if "width" in choice else ""
            yield f"backbones: {name} becomes {choice['name']}{width}"
    largest = scale.max_image_size
    for dataset in dict.fromkeys(point[_DATASET] for point in points):
        info = scaling.infos.get(dataset)
        if info is not None and largest is not None and info.image_size > largest:
            yield f"images of {dataset}: {largest} pixels instead of {info.image_size}"


def _settings(scaling: Scaling) -> Iterator[str]:
    scale = scaling.scale
    set_ = [
        f"{name} {'null' if value is None else plain(value)}"
        for name, value in scale.settings.items()
        if name not in scaling.axes
    ]
    if set_:
        yield f"settings: {', '.join(set_)}"
    if scale.max_workers is not None:
        yield f"workers: at most {scale.max_workers}"


def preset_note(label: str, presets: Sequence[float], places: Mapping[float, float]) -> str:
    """label: of the teacher. Which nominal preset stands for which reached one."""

    def said(preset: float) -> Any:
        its = places.get(preset)
        if its is None:
            return f"{preset:g}% out of reach"
        return f"{preset:g}%" if its == preset else f"{preset:g}% is {its:g}%"

    return f"{label}: {', '.join(said(preset) for preset in sorted(presets))}"

"""Scale files: how a pilot is written down (`sweeps/paper/scales/*.yaml`, or `scale:` in a sweep).

The keys and what they do are those of `orchestrator.scale.Scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.backbones import OWN_BACKBONE
from orchestrator.errors import Problem, SpecError, nearest
from orchestrator.fieldtypes import Value, as_mapping
from orchestrator.scale import Scale
from orchestrator.settings import FIELDS, BadValueError
from orchestrator.settingsfile import SettingsReader
from orchestrator.sweepfile import Section, SweepName, read_sections
from orchestrator.yamlsource import KeyPath, Source, read_yaml

__all__ = ["ScaleFile", "load_scale", "read_scale"]

Count = Annotated[int, Field(ge=1)]


class ScaleFile(Section):
    """A pilot of any sweep, with the sweep's layout."""

    name: SweepName
    """The scaled sweep is called `<sweep>-<name>`."""
    max_steps: Count | None = None
    """Steps are mapped so that the sweep's last one becomes this; never stretched."""
    seeds: Count | None = None
    """At most so many values of a seed axis, the first ones."""
    ipc: Count | None = None
    """At most so many values of an ipc axis, both ends among them."""
    divide_batch: Count = 1
    """Batch sizes are divided by this, to 2 at least; different ones stay different."""
    max_image_size: Count | None = None
    """Pixels that larger images are resized to."""
    backbones: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What replaces a backbone of students and teachers, by its name: name and width."""
    max_workers: Count | None = None
    """At most so many workers of a run."""
    teacher: dict[str, Any] = Field(default_factory=dict)
    """Settings of all teachers, such as max_steps, validate_every and screen."""
    teacher_accuracy: Literal["as_asked", "measured"] = "as_asked"
    """measured: teachers are trained first, and their columns mapped onto what they reached."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Further settings, as in a sweep. An axis of a sweep keeps its values."""


_KEY_FOR = {
    "training.steps": "max_steps",
    "training.evaluate_at": "max_steps",
    "training.evaluate_every": "max_steps",
    "probe_steps": "max_steps",
    "selection.steps": "max_steps",
    "seed": "seeds",
    "ipc": "ipc",
    "training.batch_size": "divide_batch",
    "training.norm_batch": "divide_batch",
    "teacher.batch_size": "divide_batch",
    "image_size": "max_image_size",
    "backbone.name": "backbones",
    "backbone.width": "backbones",
    "teacher.backbone": "backbones",
    "scaling.workers": "max_workers",
    "scaling.teacher_workers": "max_workers",
    "teacher.accuracy": "teacher_accuracy",
}
"""Fields that a key of the scale derives from the sweep's own values."""

_LAYOUT = ("dataset", "strategy")


def load_scale(file: str | Path) -> Scale:
    """Reads a scale file. Raises SpecError with every problem."""
    source = read_yaml(Path(file))
    scale, problems = (
        (None, source.problems) if source.problems else read_scale(source.data, (), source)
    )
    if scale is None or problems:
        raise SpecError(problems)
    return scale


def read_scale(raw: object, path: KeyPath, source: Source) -> tuple[Scale | None, list[Problem]]:
    """The scale that `raw`, at `path` of the file, describes; None when anything is wrong."""
    sections, problems = read_sections(ScaleFile, raw, path, source)
    reader = _Reader(source, path)
    settings = reader.settings("set", sections["set"])
    of_teacher = reader.settings("teacher", {"teacher": sections["teacher"]})
    for name in settings.keys() & of_teacher.keys():
        reader.add(("set",), f"sets {name}, which `teacher` sets too", remedy="keep one of the two")
    backbones = {
        name: reader.backbone(name, value) for name, value in sections["backbones"].items()
    }
    problems += reader.problems
    if problems:
        return None, problems
    return Scale(
        name=sections["name"],
        max_steps=sections["max_steps"],
        seeds=sections["seeds"],
        ipc=sections["ipc"],
        divide_batch=sections["divide_batch"],
        max_image_size=sections["max_image_size"],
        backbones=backbones,
        max_workers=sections["max_workers"],
        settings=settings | of_teacher,
        measured=sections["teacher_accuracy"] == "measured",
    ), []


class _Reader:
    """Checks settings and backbones, collecting problems. path: where the scale stands."""

    def __init__(self, source: Source, path: KeyPath) -> None:
        self.source = source
        self.path = path
        self.problems: list[Problem] = []

    def settings(self, key: str, raw: Mapping[str, Any]) -> dict[str, Value]:
        at = self.path if key == "teacher" else (*self.path, key)  # {teacher: …} as in a sweep
        written, problems = SettingsReader(self.source).read(raw, at)
        self.problems += problems
        for name, place in written.places.items():
            remedy = ""
            if name in _KEY_FOR:
                remedy = f"use `{_KEY_FOR[name]}`, which scales each sweep's own value"
            elif name in _LAYOUT:
                remedy = "leave it out: a pilot keeps its sweep's layout"
            if remedy:
                message = f"a scale cannot set {name}"
                self.problems.append(
                    Problem(
                        file=place.file,
                        key=place.key,
                        line=place.line,
                        message=message,
                        remedy=remedy,
                    )
                )
        return written.values

    def backbone(self, name: str, raw: Mapping[str, Any]) -> dict[str, Value]:
        """Checks as a teacher's backbone is checked: `{name, width}`; no name keeps `name`."""
        at = ("backbones", name)
        try:
            FIELDS["backbone.name"].check(name)
        except BadValueError as error:
            self.add(at, error.message, value=name, like=error.nearest)
            return {}
        for key in sorted(raw.keys() - {"name", "width"}):
            self.add((*at, key), "unknown key", like=nearest(key, ("name", "width")))
        if not raw or raw.keys() - {"name", "width"}:
            if not raw:
                self.add(at, "says nothing", remedy="give {width: 8}, or {name: …}")
            return {}
        try:
            checked = as_mapping(FIELDS["teacher.backbone"].check({"name": name, **raw}))
        except BadValueError as error:
            self.add(at, error.message, value=dict(raw), like=error.nearest, remedy=error.remedy)
            return {}
        if checked["name"] == OWN_BACKBONE != name and "width" not in checked:
            checked["width"] = FIELDS["backbone.width"].default
        return checked

    def add(
        self,
        at: KeyPath,
        message: str,
        value: object = None,
        *,
        like: str | None = None,
        remedy: str = "",
    ) -> None:
        path = (*self.path, *at)
        self.problems.append(self.source.problem(path, message, remedy, value=value, like=like))

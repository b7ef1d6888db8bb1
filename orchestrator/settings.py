"""Everything a sweep can set: the one place where names, types, defaults and meanings stand.

The models below are never filled for a grid point (a grid has up to a hundred thousand of them).
They are read once into `FIELDS`, which checks single values: a grid's axes hold few of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from orchestrator.errors import nearest
from orchestrator.fieldtypes import (
    Accuracy,
    AugmentationChoice,
    BackboneName,
    Count,
    Duration,
    Expect,
    Flag,
    Fraction,
    FractionBelowOne,
    GpuShare,
    Ipc,
    Keep,
    MethodName,
    NoiseShare,
    NonNegative,
    Positive,
    Screening,
    Seed,
    SelectedShare,
    Stem,
    Steps,
    StrategyName,
    TeacherBackbone,
    Value,
    WorkerCount,
)

__all__ = [
    "ALIASES",
    "FIELDS",
    "GROUPS",
    "IMPLIED",
    "INDEX",
    "NUM_REPORTED",
    "UNREPORTED",
    "BadValueError",
    "Setting",
    "Settings",
    "canonical_name",
    "nearest_name",
]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BackboneSettings(_Group):
    name: BackboneName = "resnet18"
    """φ: the paper's ResNet-18, our vit_tiny, or a torchvision classification model without its
    classifier."""
    width: Count = 64
    """Channels of the first stage of resnet18 or resnet50; no other backbone has it."""
    stem: Stem = "auto"
    """small (3×3, stride 1, no max-pool) or standard; auto: small up to 64 pixels."""


class TeacherSettings(_Group):
    """The teacher of strategies B and C; it trains on the full training set, whatever the IPC, in
    the student's precision, and its batch-norm sees its global batch."""

    accuracy: Accuracy | None = None
    """Preset top-1 in percent at which the snapshot is taken; strategies B and C need it."""
    seed: Seed = 0
    """One teacher for all student seeds, as in the paper; put it on an axis for several."""
    augmentation: AugmentationChoice = "std"
    """What the teacher trained with; the paper's is std unless a table says otherwise."""
    backbone: TeacherBackbone | None = None
    """null: the student's."""
    batch_size: Count | None = None
    """null: the student's."""
    lr: Positive | None = None
    """null: the student's."""
    weight_decay: NonNegative | None = None
    """null: the student's."""
    max_steps: Duration = 100_000
    """Where the search for the preset ends without success."""
    validate_every: Count = 1
    """Steps between validations; the paper validates after every step."""
    label_noise: NoiseShare | None = None
    """Share of wrong labels it learns from; null: the student's."""
    screen: Screening | None = None
    """Validate on this many test samples and confirm on all near a preset; adaptive: on as many as
    rule the missing presets out; null: always on all."""


class KdSettings(_Group):
    """Conventional distillation, `loss: kd`: (1 − α)·CE + α·T²·KL on one classifier, both sides
    softened by `temperature` (Hinton et al. 2015)."""

    alpha: Fraction = 0.9
    """α, the weight of the teacher's term."""
    revised_weight: Fraction = 1.0
    """With `revision`: share of the KL that goes to the revised targets; the rest goes to the
    teacher's own."""


class RevisionSettings(_Group):
    """Label revision (arXiv 2404.03693): soft targets put right by the ground truth."""

    eta: FractionBelowOne | None = None
    """η, of β = η / (p_max − p_target + 1); null: no revision. The study's is 0.8, which is also
    taken where the rest of `revision` is written and this is not."""
    only_wrong: Flag = True
    """Revise just the targets whose largest class is not the true one; false: all."""


class SelectionSettings(_Group):
    """Data selection (arXiv 2404.03693): the samples with the highest scores learn from the
    teacher, the others from their labels alone."""

    method: MethodName | None = None
    """How samples are scored; null: no selection. The study's, influence, is also taken where the
    rest of `selection` is written and this is not."""
    fraction: SelectedShare = 0.8
    """Share of the student's samples that is selected."""
    seed: Seed | None = None
    """Of the model that scores, or of the random draw; null: 0, and the run's own for random."""
    steps: Duration | None = None
    """How long the model that scores trains (strategy A, on the full training set); null: 10
    epochs."""
    checkpoints: Count = 5
    """Of tracin: states of that model that are summed over, evenly spaced."""
    damping: Positive = 0.1
    """Of influence: what is added to the curvature, as a share of its mean."""


class TrainingSettings(_Group):
    steps: Duration | None = None
    """How long a student trains; must be given. An epoch is one of the full training set."""
    batch_size: Count = 128
    """The global batch, over all workers."""
    lr: Positive = 1e-3
    """AdamW's learning rate, constant."""
    weight_decay: NonNegative = 0.01
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast, float32 master weights. Never chosen by the device."""
    norm_batch: Count | None = None
    """Samples batch-norm sees; null: the global batch, synchronised over the workers."""
    evaluate_at: Steps = ()
    """Further evaluations, beyond the standard ones."""
    evaluate_every: Duration | None = None
    """Evaluations at every multiple, beyond the standard ones."""


class ScalingSettings(_Group):
    workers: WorkerCount = "auto"
    """Data-parallel workers of one run; no part of what the run is. auto: 8 for imagenet, else 1,
    and never more than a node has devices. {imagenet: 4, default: 1}: by data set."""
    teacher_workers: WorkerCount | None = None
    """Of the teachers behind it; null: as many."""
    gpus_per_worker: GpuShare = "auto"
    """A fraction lets one-worker runs share a GPU: 0.25 for four at once. auto: as many as got most
    done where it was measured on this GPU with this model and batch, else one. Also by data set."""


class Settings(_Group):
    dataset: str | None = None
    """An official data set or one that `data:` locates; must be given."""
    image_size: Count | None = None
    """Pixels of the images that are trained on and evaluated; null: the data set's own size."""
    backbone: BackboneSettings = BackboneSettings()
    strategy: StrategyName | None = None
    """A: one-hot per class; B: a soft target per augmented view; C: per sample. Must be given."""
    ipc: Ipc = "full"
    """Images per class a student sees, or full."""
    augmentation: AugmentationChoice = "std"
    """Of the student: a name, or {base: std, brightness: 0.8}."""
    seed: Seed = 0
    subset_seed: Seed | None = None
    """Draws the IPC subset; null: the run's seed."""
    label_noise: NoiseShare = 0.0
    """Share of training labels that are wrong, evenly among the other classes; the teacher's too,
    unless teacher.label_noise says otherwise. Test labels stay right."""
    noise_seed: Seed = 0
    """Draws the wrong labels: one noisy data set for all seeds."""
    temperature: Positive = 2.0
    """Of the teacher's soft targets."""
    student_temperature: Positive = 1.0
    """Of the projection head g."""
    loss: Literal["decoupled", "joint", "kd"] = "decoupled"
    """joint: the linear classifier's loss, weighted by ce_weight, reaches the backbone too. kd:
    conventional distillation of one classifier."""
    ce_weight: NonNegative = 1.0
    kd: KdSettings = KdSettings()
    revision: RevisionSettings = RevisionSettings()
    selection: SelectionSettings = SelectionSettings()
    probe: Literal["joint", "offline"] = "joint"
    """What a point's h is. joint: the student's own, trained with it on detached features. offline:
    one trained afterwards on the student's backbone, frozen as it is after training.steps."""
    probe_steps: Duration | None = None
    """How long an offline probe trains; null: 10 epochs. Such a point's steps in a report are the
    probe's; training.evaluate_at and evaluate_every are its student's."""
    target_view: Literal["plain"] = "plain"
    """What strategy C's targets are computed on: the un-augmented sample."""
    teacher: TeacherSettings = TeacherSettings()
    training: TrainingSettings = TrainingSettings()
    scaling: ScalingSettings = ScalingSettings()
    keep_checkpoint: Keep = "final"
    """How long a complete run's checkpoint stays: final (always), none, or a number of days."""


class BadValueError(ValueError):
    """message: what is wrong with a value. nearest: the valid name most like it."""

    def __init__(self, message: str, nearest: str | None = None, remedy: str = "") -> None:
        super().__init__(message, nearest, remedy)
        self.message = message
        self.nearest = nearest
        self.remedy = remedy


@dataclass(frozen=True)
class Setting:
    """One leaf of `Settings`, by its dotted name."""

    name: str
    default: Value
    annotation: Any
    description: str
    expect: Expect
    optional: bool

    @property
    def is_flag(self) -> bool:
        """Whether its values are true and false."""
        return get_args(self.annotation)[:1] == (bool,)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    def check(self, raw: object) -> Value:
        """The value as the program uses it. Raises BadValueError."""
        if raw is None and self.optional:
            return None
        self._refuse_traps(raw)
        try:
            return self.adapter.validate_python(raw)
        except ValidationError as error:
            raise self._bad(raw, error) from None

    def _refuse_traps(self, raw: object) -> None:
        if isinstance(raw, bool) and not self.is_flag:
            raise BadValueError(
                f"is {raw}, expected {self.expect.text}",
                remedy="YAML reads no, off, yes and on as false and true: write the value, quoted",
            )
        if raw is None:
            default = f"its default, {self.default!r}" if self.default is not None else "no value"
            raise BadValueError(
                f"is empty (null), expected {self.expect.text}",
                remedy=f"leave the key out for {default}",
            )

    def _bad(self, raw: object, error: ValidationError) -> BadValueError:
        # Our own validators say more than "expected …" could.
        own = [item["msg"] for item in error.errors() if item["type"] == "value_error"]
        reason = own[0].removeprefix("Value error, ") if own else ""
        like = nearest(raw, self.expect.names) if isinstance(raw, str) else None
        if like is not None:
            reason = ""
        detail = f": {reason}" if reason else ""
        return BadValueError(f"is {raw!r}, expected {self.expect.text}{detail}", like)


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _leaves(type(field.default), f"{prefix}{name}.")
            continue
        annotation: Any = field.annotation
        for item in field.metadata:
            annotation = Annotated[annotation, item]
        yield Setting(
            name=prefix + name,
            default=field.default,
            annotation=annotation,
            description=(field.description or "").replace("\n", " "),
            expect=_expectation(annotation),
            optional=type(None) in get_args(field.annotation),
        )


def _expectation(annotation: Any) -> Expect:
    """The innermost `Expect`; names for a plain Literal."""
    metadata = getattr(annotation, "__metadata__", ())
    for item in metadata:
        if isinstance(item, Expect):
            return item
    arguments = get_args(annotation)
    if arguments and all(isinstance(name, str) for name in arguments):
        return Expect(" or ".join(arguments), arguments)
    for argument in arguments:
        if argument is not type(None):
            return _expectation(argument)
    return Expect("a name")


IMPLIED: Mapping[str, Value] = {"revision.eta": 0.8, "selection.method": "influence"}
"""What switches a group of settings on, and its value where others of the group are written and it
is not."""

UNREPORTED: tuple[str, ...] = (
    "teacher.max_steps",
    "training.evaluate_at",
    "training.evaluate_every",
    "probe_steps",
    "scaling.workers",
    "scaling.teacher_workers",
    "scaling.gpus_per_worker",
    "keep_checkpoint",
)
"""How a run executes, how it is looked at and what stays of it: no part of a result, so no field of
a report."""


def _ordered() -> dict[str, Setting]:
    settings = {setting.name: setting for setting in _leaves(Settings)}
    unreported = {name: settings.pop(name) for name in UNREPORTED}
    return settings | unreported


FIELDS: Mapping[str, Setting] = _ordered()
"""Every setting by dotted name, in the order of the models, the unreported ones last. A grid point
is a tuple in this order."""

NUM_REPORTED = len(FIELDS) - len(UNREPORTED)
"""`point[:NUM_REPORTED]` is what a report can tell points apart by."""

INDEX: Mapping[str, int] = {name: index for index, name in enumerate(FIELDS)}
"""Position of a field in a grid point."""

GROUPS: frozenset[str] = frozenset(name.rpartition(".")[0] for name in FIELDS if "." in name)
"""Names that stand for a nested mapping."""

ALIASES: Mapping[str, str] = {
    "backbone": "backbone.name",
    "workers": "scaling.workers",
    **{name.removeprefix("training."): name for name in FIELDS if name.startswith("training.")},
}
"""Short names that axes, options and report items may use."""


def canonical_name(name: str) -> str | None:
    """The dotted name that `name` means, or None when no field is called that."""
    name = ALIASES.get(name, name)
    return name if name in FIELDS else None


def nearest_name(name: str) -> str | None:
    """The field most like `name`: also `teacher.acuracy` → `teacher.accuracy`, `step` → `steps`."""
    return nearest(name, [*FIELDS, *ALIASES, *GROUPS])

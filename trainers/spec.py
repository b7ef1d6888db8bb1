"""What a run is, as frozen values: everything here shapes the trajectory of the weights.

Nothing else may live in these classes. How long a run trains, when it is evaluated, on which
device, with how many workers and where its files lie is said by `Request` and `Runtime`, which no
key sees.

**Neutral values.** A field with a default is left out of the canonical JSON while it has that
default (`orchestrator.identity`), so a field added later changes no old run key. Hence two rules: a
default in this module is never changed, and a new field always gets the default under which old
runs ran.
What users get when they say nothing is decided in `orchestrator.spec`, not here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

__all__ = [
    "AUGMENTATIONS",
    "METHODS",
    "SEMANTICS",
    "AdamW",
    "Augmentation",
    "Backbone",
    "Dataset",
    "ProbeSpec",
    "Request",
    "Revision",
    "RunSpec",
    "Runtime",
    "ScoresSpec",
    "Scoring",
    "Screening",
    "Selection",
    "SelectionMethod",
    "StudentRef",
    "StudentSpec",
    "TargetsSpec",
    "TeacherRef",
    "TeacherSpec",
    "scores_spec",
    "targets_spec",
]

SEMANTICS = 1
"""Version of what the fields mean. Raised when equal specs would train different weights."""

Strategy = Literal["A", "B", "C"]
Precision = Literal["fp32", "bf16"]
Screening = int | Literal["adaptive"] | None
SelectionMethod = Literal["influence", "el2n", "loss", "tracin", "random"]
METHODS: tuple[SelectionMethod, ...] = get_args(SelectionMethod)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set, pinned by content, and the part of its training split a student sees.

    ipc: images per class; None is the full training set. The subset is the first `ipc` of one
    permutation per class drawn from `subset_seed`, so subsets of one seed nest.
    image_size: pixels of the images that are trained on and evaluated; None is the data set's own.
    label_noise: share of the training labels that are wrong, drawn from `noise_seed`
    (`trainers.label_noise`). Which images a subset holds is told by the true labels.
    """

    name: str
    fingerprint: str
    ipc: int | None = None
    subset_seed: int | None = None
    image_size: int | None = None
    label_noise: float = 0.0
    noise_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """φ: the feature extractor. `resnet18` is the paper's own (Appendix B), `vit_tiny` a small
    ViT of ours; any other name is a torchvision classification model with its classifier removed.

    width: channels of the first stage of ResNet-18 (64 in the paper), or of a ResNet-50 that is not
    torchvision's, whose width is 64 and is written as None; None for all others.
    stem: `small` is a 3×3 stride-1 first convolution without max-pool; `standard` is torchvision's.
    """

    name: str
    width: int | None = None
    stem: Literal["small", "standard"] = "small"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Resolved augmentation of one view; all-neutral is the paper's NoAug (normalisation only).

    Application order: color jitter, grayscale, crop with flip, normalise, then MixUp or CutMix.
    crop_scale: area range of RandomResizedCrop, None for no crop. crop_ratio: aspect range.
    mixup_alpha, cutmix_alpha: parameter of the symmetric Beta, 0 for none; at most one is set.
    """

    color_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grayscale_p: float = 0.0
    flip_p: float = 0.0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0


_COLOR = Augmentation(color_p=0.8, brightness=0.4, contrast=0.4, saturation=0.4)

AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "color": _COLOR,
    "crop": Augmentation(crop_scale=(0.08, 1.0)),
    "mixup": Augmentation(mixup_alpha=0.8),
    "cutmix": Augmentation(cutmix_alpha=1.0),
    "std": replace(_COLOR, grayscale_p=0.2, flip_p=0.5, crop_scale=(0.08, 1.0)),
}
"""The paper's augmentations by name (Appendix B; the strengths of ColorJitter are assumed)."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW on all parameters, constant learning rate (Appendix B)."""

    lr: float
    weight_decay: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class TeacherRef:
    """A teacher snapshot, by the rule that makes it: the first validated step of run `key` whose
    top-1 on the whole test set lies in [accuracy − 1, accuracy + 1], an update that jumps over the
    window being bisected (harvest rule of SEMANTICS 1).

    accuracy: preset, in percent. validate_every: steps between validations. screen: validate on
    this many fixed test samples first and confirm near a preset on the whole set; `adaptive`: on as
    many as rule the preset out (`trainers.screening`); None is always the whole set. least: the
    window's lower end where an untrained net would be in [accuracy − 1, accuracy + 1]
    (`presets.least_trained`).
    """

    key: str
    accuracy: float
    validate_every: int = 1
    screen: Screening = None
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher: cross-entropy on one-hot targets (strategy A), always on the full training set.
    Batch-norm sees its global batch."""

    dataset: Dataset
    backbone: Backbone
    augmentation: Augmentation
    optimizer: AdamW
    batch_size: int
    seed: int
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Label revision of soft targets (arXiv 2404.03693; `trainers.revision`).

    eta: η in (0, 1), of β = η / (p_max − p_target + 1). only_wrong: whether just those targets are
    revised whose largest class is not the true one.
    """

    eta: float
    only_wrong: bool = True


@dataclass(frozen=True, kw_only=True)
class StudentRef:
    """The weights of student run `key` after `step` steps."""

    key: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How training samples are scored, so that the highest can be selected (`trainers.scores`).

    student: the model that scores, a strategy A student on the full training set; None for
    `random`. checkpoints: states of it that are summed over, evenly spaced up to `student.step`
    (`tracin` alone has several). damping: of `influence`, a share of the curvature's mean. seed:
    of `random`'s draw.
    """

    method: SelectionMethod
    student: StudentRef | None = None
    checkpoints: int = 1
    damping: float | None = None
    seed: int | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the student whose weights are looked at, ascending."""
        if self.student is None:
            return ()
        parts = range(1, self.checkpoints + 1)
        return tuple(sorted({-(-self.student.step * k // self.checkpoints) for k in parts}))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Data selection (arXiv 2404.03693): the `fraction` of a student's training samples with the
    highest scores learn from the teacher, the others from their labels alone."""

    scoring: Scoring
    fraction: float


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """A student: backbone φ and projection head g by KL to the mapped targets, linear classifier h
    by cross-entropy on detached features (equations 1 to 3).

    temperature: of the teacher's soft targets; None for strategy A. student_temperature: of g.
    loss: `decoupled` as in the paper; `joint` lets h's loss, weighted by ce_weight, reach φ; `kd`
    is conventional distillation of one classifier, both sides at `temperature`:
    (1 − alpha) · CE + alpha · T² · KL. alpha: None without a teacher, and under another loss.
    revised_weight: share of kd's KL that goes to the revised targets, the rest to the teacher's.
    revision: of the teacher's soft targets. selection: which samples get one.
    batch_size: the global batch. norm_batch: samples that batch-norm sees; None is all of it.
    """

    dataset: Dataset
    backbone: Backbone
    augmentation: Augmentation
    strategy: Strategy
    optimizer: AdamW
    batch_size: int
    seed: int
    teacher: TeacherRef | None = None
    temperature: float | None = None
    student_temperature: float = 1.0
    loss: Literal["decoupled", "joint", "kd"] = "decoupled"
    ce_weight: float = 1.0
    target_view: Literal["plain"] = "plain"
    norm_batch: int | None = None
    precision: Precision = "fp32"
    alpha: float | None = None
    revised_weight: float = 1.0
    revision: Revision | None = None
    selection: Selection | None = None


@dataclass(frozen=True, kw_only=True)
class TargetsSpec:
    """Strategy C's soft targets of one snapshot for a whole training split: made once, shared."""

    dataset: Dataset
    teacher: TeacherRef
    temperature: float
    split: Literal["train"] = "train"
    view: Literal["plain"] = "plain"
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def stored_view(self) -> str:
        """What the file says of the view: its size too, where that is not the data set's own. A
        snapshot does not tell: at its random initialisation a teacher is the same for any size."""
        size = self.dataset.image_size
        return self.view if size is None else f"{self.view}-{size}px"


def targets_spec(
    dataset: Dataset,
    teacher: TeacherRef,
    temperature: float,
    *,
    num_classes: int,
    view: Literal["plain"] = "plain",
) -> TargetsSpec:
    """The soft targets that a strategy C student on `dataset` reads: of the full training set,
    whatever its IPC and its labels. In half precision above 200 classes, where ImageNet's would
    take 5 GB instead of 2.6."""
    return TargetsSpec(
        dataset=replace(dataset, ipc=None, subset_seed=None, label_noise=0.0, noise_seed=0),
        teacher=teacher,
        temperature=temperature,
        view=view,
        dtype="float32" if num_classes <= 200 else "float16",
    )


@dataclass(frozen=True, kw_only=True)
class ScoresSpec:
    """The scores of all training samples: made once, shared by every student that selects by
    them."""

    dataset: Dataset
    scoring: Scoring


def scores_spec(dataset: Dataset, scoring: Scoring) -> ScoresSpec:
    """The scores that a student on `dataset` selects by: of the full training set, whatever its
    IPC, with the labels it sees."""
    return ScoresSpec(dataset=replace(dataset, ipc=None, subset_seed=None), scoring=scoring)


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """A linear classifier h trained afterwards, by cross-entropy (equation 2), on the backbone of
    `student`, which is frozen and in evaluation mode. The other fields are as the student's."""

    student: StudentRef
    dataset: Dataset
    backbone: Backbone
    augmentation: Augmentation
    optimizer: AdamW
    batch_size: int
    seed: int
    precision: Precision = "fp32"


RunSpec = TeacherSpec | StudentSpec | TargetsSpec | ScoresSpec | ProbeSpec


@dataclass(frozen=True, kw_only=True)
class Request:
    """How far to train and what to look at on the way. Never part of a key.

    horizon: last step (a teacher's is its search limit, `teacher.max_steps`).
    evaluate_at: sorted steps a student must be evaluated at, beyond the standard ones.
    presets: teacher accuracies (percent) that must be harvested; the standard presets passed on the
    way are harvested too. A teacher stops once all of these are.
    keep_weights_at: sorted steps whose weights a student must keep, for probes of them and for
    scores by them.
    """

    horizon: int
    evaluate_at: tuple[int, ...] = ()
    presets: tuple[float, ...] = ()
    validate_every: int = 1
    screen: Screening = None
    keep_weights_at: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a run executes; changes speed and the order of sums, never what is computed.

    threads: torch threads on the CPU; None sets one thread, which makes CPU runs bit-reproducible.
    compile: whether models, augmentation and losses are compiled (`trainers.compiled`).
    cuda_graphs: whether the step of a run on one GPU is captured and replayed (`trainers.graphs`).
    checkpoint_every_s: seconds between resumable checkpoints.
    decode_threads: threads that decode a run's pictures, where these stay encoded; None takes the
    cores of the process, shared among the workers of its node.
    share: of a GPU, that each worker has: others train on the rest. It is recorded, no more.
    """

    device: str = "cpu"
    threads: int | None = None
    compile: bool = False
    cuda_graphs: bool = True
    checkpoint_every_s: float = 60.0
    decode_threads: int | None = None
    share: float = 1.0

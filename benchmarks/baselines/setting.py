"""What all contenders have in common: model, data, batch, device, precision."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from trainers.data.images import ImageData
from trainers.models import Student, build_student, build_teacher
from trainers.spec import (
    AUGMENTATIONS,
    AdamW,
    Backbone,
    Dataset,
    Precision,
    Runtime,
    Strategy,
    StudentSpec,
    TeacherRef,
)

__all__ = ["TEMPERATURE", "Setting"]

TEMPERATURE = 2.0
_ANY_TEACHER = TeacherRef(key="0" * 64, accuracy=60.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """ResNet-18 on CIFAR-10 with AdamW, as the paper's Appendix B has it.

    width: channels of the first stage, 64 in the paper. augmentation: a name in AUGMENTATIONS.
    """

    device: torch.device
    precision: Precision
    width: int
    batch: int
    augmentation: str
    compile: bool
    data: ImageData = field(repr=False)

    @property
    def backbone(self) -> Backbone:
        return Backbone(name="resnet18", width=self.width)

    @property
    def optimizer(self) -> AdamW:
        return AdamW(lr=1e-3, weight_decay=0.01)

    @property
    def runtime(self) -> Runtime:
        return Runtime(device=str(self.device), compile=self.compile)

    def student_spec(self, strategy: Strategy) -> StudentSpec:
        soft = {} if strategy == "A" else {"teacher": _ANY_TEACHER, "temperature": TEMPERATURE}
        info = self.data.info
        return StudentSpec(
            dataset=Dataset(name=info.name, fingerprint=info.fingerprint),
            backbone=self.backbone,
            augmentation=AUGMENTATIONS[self.augmentation],
            strategy=strategy,
            optimizer=self.optimizer,
            batch_size=self.batch,
            seed=0,
            precision=self.precision,
            **soft,  # type: ignore[arg-type]
        )

    def student(self) -> Student:
        """The model that every contender trains, on the CPU."""
        info = self.data.info
        return build_student(
            self.backbone, image_size=info.image_size, num_classes=info.num_classes, seed=0
        )

    def teacher(self) -> nn.Module:
        """Strategy B's teacher, of the student's size and untrained: it costs what any does."""
        info = self.data.info
        return build_teacher(
            self.backbone, image_size=info.image_size, num_classes=info.num_classes, seed=1
        ).eval()

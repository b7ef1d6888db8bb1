"""Distillation as others do it: torchdistill, for strategy B."""

from __future__ import annotations

import time
from typing import Any

from rounds import Stopwatch, Turn
from torchdistill.core.distillation import get_distillation_box
from torchdistill.misc.log import MetricLogger, SmoothedValue

from baselines.setting import TEMPERATURE, Setting
from baselines.torchvision_data import loader_options, pictures, sampler, settle_batches
from trainers.precision import autocast

__all__ = ["TorchdistillStep"]


class TorchdistillStep:
    """Its distillation box, set up by the configuration its YAML files hold, in the loop of its own
    image-classification example: a loss read every step and a metric logger included.

    Teacher, student, data and losses are strategy B's: the KL of g to the teacher at temperature 2
    (of both, as torchdistill has it) and the cross-entropy of h. It knows no bf16 of its own: its
    forward pass runs under torch's autocast there.
    """

    def __init__(self, setting: Setting, workers: int) -> None:
        self.name = "torchdistill"
        self.workers = workers
        self._setting = setting
        self._pictures = pictures(setting)
        self._teacher, self._student = setting.teacher(), setting.student()

    def turn(self, steps: int) -> Turn:
        """A box and workers of its own, whose start is not counted."""
        lead_in = settle_batches(self.workers)
        box = self._box(lead_in + steps)
        box.pre_epoch_process(epoch=0)
        watch = self._train(box, lead_in, steps)
        box.clean_modules()
        return watch.turn(steps * self._setting.batch)

    def _train(self, box: Any, lead_in: int, steps: int) -> Stopwatch:
        device, precision = self._setting.device, self._setting.precision
        watch = Stopwatch(device)
        log = MetricLogger(delimiter="  ")
        log.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        batches = log.log_every(box.train_data_loader, 100, "")
        for number, (images, labels, extra) in enumerate(batches, start=1):
            began = time.time()
            images, labels = images.to(device), labels.to(device)
            with autocast(device, precision):
                loss = box.forward_process(images, labels, extra)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item())
            log.meters["img/s"].update(len(images) / (time.time() - began))
            if number == lead_in:
                watch.start()
            elif number == lead_in + steps:
                watch.stop()
        return watch

    def _box(self, steps: int) -> Any:
        loader = {
            "dataset_id": "train",
            "sampler": {"class_or_func": lambda data: sampler(data, self._setting, steps)},
            "kwargs": loader_options(self._setting, self.workers),
        }
        return get_distillation_box(
            self._teacher, self._student, {"train": self._pictures},
            {"num_epochs": 1, "train_data_loader": loader, **_configuration(self._setting)},
            self._setting.device, None, False, 1,
        )  # fmt: skip

    def close(self) -> None:
        """Each turn ends what it began."""


def _configuration(setting: Setting) -> dict[str, Any]:
    """What its YAML would say of models, losses and optimiser."""
    values = setting.optimizer
    return {
        "teacher": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"input": [], "output": ["classifier"]},
            "requires_grad": False,
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"input": [], "output": ["projection", "classifier"]},
            "requires_grad": True,
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": _projection_term(), "ce": _classifier_term()}},
        },
        "optimizer": {
            "key": "AdamW",
            "kwargs": {"lr": values.lr, "weight_decay": values.weight_decay},
        },
    }


def _projection_term() -> dict[str, Any]:
    return {
        "criterion": {
            "key": "KDLoss",
            "kwargs": {
                "student_module_path": "projection",
                "student_module_io": "output",
                "teacher_module_path": "classifier",
                "teacher_module_io": "output",
                "temperature": TEMPERATURE,
                "alpha": 0.0,
            },
        },
        "weight": 1.0,
    }


def _classifier_term() -> dict[str, Any]:
    return {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": "classifier", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }

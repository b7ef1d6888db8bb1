"""Baseline 1, the paper's own stack: PyTorch Lightning, torchvision, a DataLoader, AdamW."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from rounds import Stopwatch, Turn
from torch import Tensor
from torch.utils.data import DataLoader

from baselines.setting import Setting
from baselines.torchvision_data import loader_options, pictures, sampler, settle_batches

__all__ = ["LightningStep"]

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


class DecoupledModule(lightning.LightningModule):
    """Strategy A: cross-entropy of g and, on detached features, of h."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.model = setting.student()
        self._values = setting.optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        projection_NC, classifier_NC = self.model(images)
        loss = F.cross_entropy(projection_NC, labels) + F.cross_entropy(classifier_NC, labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        values = self._values
        return torch.optim.AdamW(self.parameters(), lr=values.lr, weight_decay=values.weight_decay)


class Watch(Callback):
    """Times from the end of step `lead_in` to the end of step `lead_in + steps`: between them lie
    as many loads, transfers and steps."""

    def __init__(self, device: torch.device, lead_in: int, steps: int) -> None:
        self.watch = Stopwatch(device)
        self._first, self._last = lead_in - 1, lead_in + steps - 1

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self._first:
            self.watch.start()
        elif batch_idx == self._last:
            self.watch.stop()


class LightningStep:
    """`Trainer.fit` on one module, in its usual form but for what only slows it down: no logger, no
    progress bar, no checkpoints, no validation."""

    def __init__(self, setting: Setting, workers: int) -> None:
        self.name = "Lightning"
        self.workers = workers
        self._setting = setting
        self._pictures = pictures(setting)
        self._module = DecoupledModule(setting)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def turn(self, steps: int) -> Turn:
        """A trainer and workers of its own, so that no worker takes a core from the others' turns.
        Their start is not counted."""
        setting, lead_in = self._setting, settle_batches(self.workers)
        watch = Watch(setting.device, lead_in, steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that more workers would be faster: that is measured
            trainer = self._trainer(lead_in + steps, watch)
            trainer.fit(self._module, self._loader(lead_in + steps))
        return watch.watch.turn(steps * setting.batch)

    def _loader(self, steps: int) -> DataLoader[Any]:
        chosen = sampler(self._pictures, self._setting, steps)
        options = loader_options(self._setting, self.workers)
        return DataLoader(self._pictures, sampler=chosen, **options)

    def _trainer(self, steps: int, watch: Watch) -> lightning.Trainer:
        device = self._setting.device
        on_gpu = device.type == "cuda"
        return lightning.Trainer(
            accelerator="gpu" if on_gpu else "cpu", devices=[device.index or 0] if on_gpu else 1,
            precision=_PRECISION[self._setting.precision], max_steps=steps, max_epochs=-1,
            callbacks=[watch], logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False,
        )  # fmt: skip

    def close(self) -> None:
        """Each turn ends what it began."""

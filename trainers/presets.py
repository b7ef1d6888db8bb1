"""Teacher accuracies, in percent: those that every teacher run harvests on its way, and the least
that counts as one of them."""

from __future__ import annotations

__all__ = ["ROUNDING", "STANDARD_PRESETS", "TOLERANCE", "least_trained"]

STANDARD_PRESETS: tuple[float, ...] = (2, 10, 12, 20, 28, 30, 40, 50, 60, 62, 70, 80, 90)
"""Every ten points, and the other accuracies the paper uses (2 on CIFAR-100 and Tiny-ImageNet; 12,
28 and 62 on ImageNet). A snapshot costs one file; a teacher trained again costs hours."""

TOLERANCE = 1.0
"""Points on either side of a preset (paper, Appendix B: an error below 1%)."""

ROUNDING = 1e-9
"""Points: accuracies are ratios of integers, and this absorbs their rounding alone."""


def least_trained(preset: float, num_classes: int) -> float | None:
    """The least top-1 that counts as `preset` where its window would let an untrained net through:
    halfway between chance, 100 / num_classes, and the preset. None elsewhere, and where chance is
    the preset or above it (the paper's 10% teacher of CIFAR-10 is the random initialisation): 1.5
    for the 2% teacher of CIFAR-100, which is a trained one. Test sets are taken to be balanced."""
    chance = 100 / num_classes
    return (chance + preset) / 2 if preset - TOLERANCE <= chance < preset else None

"""Teacher accuracies, in percent, that every teacher run harvests on its way."""

from __future__ import annotations

__all__ = ["STANDARD_PRESETS"]

STANDARD_PRESETS: tuple[float, ...] = (2, 10, 12, 20, 28, 30, 40, 50, 60, 62, 70, 80, 90)
"""Every ten points, and the other accuracies the paper uses (2 on CIFAR-100 and Tiny-ImageNet; 12,
28 and 62 on ImageNet). A snapshot costs one file; a teacher trained again costs hours."""

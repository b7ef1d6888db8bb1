"""The data sets whose content is known before they are opened, so that a plan needs no data."""

from __future__ import annotations

from trainers.data.archive import LAYOUTS
from trainers.data.digits import DIGITS_FINGERPRINT
from trainers.data.info import DatasetInfo

__all__ = ["OFFICIAL"]

OFFICIAL: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        name="digits",
        fingerprint=DIGITS_FINGERPRINT,
        num_classes=10,
        num_train=1438,
        num_test=359,
        smallest_class=139,
        balanced=False,
        image_size=8,
        mean=(0.3053, 0.3053, 0.3053),
        std=(0.3758, 0.3758, 0.3758),
    ),
    "cifar10": DatasetInfo(
        name="cifar10",
        fingerprint=LAYOUTS["cifar10"].fingerprint,
        num_classes=10,
        num_train=50_000,
        num_test=10_000,
        smallest_class=5_000,
        balanced=True,
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DatasetInfo(
        name="cifar100",
        fingerprint=LAYOUTS["cifar100"].fingerprint,
        num_classes=100,
        num_train=50_000,
        num_test=10_000,
        smallest_class=500,
        balanced=True,
        image_size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}
"""Fingerprints: of `digits` that of the content, of CIFAR the SHA-256 over the names and MD5s of
the official batch files (`archive.ArchiveLayout.fingerprint`). Any other copy of CIFAR gets a
content fingerprint of its own, since it may have been re-encoded."""

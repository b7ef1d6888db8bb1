"""The data sets whose content is known before they are opened, so that a plan needs no data."""

from __future__ import annotations

from trainers.data.archive import LAYOUTS
from trainers.data.digits import DIGITS_FINGERPRINT
from trainers.data.encoded import VIEW_SIZE
from trainers.data.info import PROVISIONAL, DatasetInfo

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
    "tinyimagenet": DatasetInfo(
        name="tinyimagenet",
        fingerprint=PROVISIONAL,
        num_classes=200,
        num_train=100_000,
        num_test=10_000,
        smallest_class=500,
        balanced=True,
        image_size=64,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    ),
    "imagenet": DatasetInfo(
        name="imagenet",
        fingerprint=PROVISIONAL,
        num_classes=1000,
        num_train=1_281_167,
        num_test=50_000,
        smallest_class=732,
        balanced=False,
        image_size=VIEW_SIZE,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}
"""Fingerprints: of `digits` that of the content, of CIFAR the SHA-256 over the names and MD5s of
the official batch files (`archive.ArchiveLayout.fingerprint`). Any other copy of CIFAR gets a
content fingerprint of its own, since it may have been re-encoded. So do Tiny-ImageNet and ImageNet,
which have no published checksums of what is in them: their keys are final once they are prepared.
The test split is the validation split, whose labels are published."""

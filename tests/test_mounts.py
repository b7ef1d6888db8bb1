"""What the mounts of a machine say of how old a listing of the store may be."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from orchestrator.mounts import listing_age_s

ROOT = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"


def mount(point: str, kind: str = "nfs4", options: str = "rw,vers=4.2,hard") -> str:
    return f"40 21 0:52 / {point} rw,relatime shared:9 - {kind} nas:/export {options}"


def age(*lines: str, path: str = "/shared/store") -> tuple[int, int] | None:
    return listing_age_s("\n".join([ROOT, *lines, ""]), PurePosixPath(path))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw,vers=4.2,hard", (30, 60)),
        ("rw,acdirmax=3", (30, 3)),
        ("rw,acregmin=9,acdirmin=1,acdirmax=3,hard", (1, 3)),
        ("rw,actimeo=2", (2, 2)),
        ("rw,actimeo=2,acdirmin=4", (4, 2)),
        ("rw,sync,noac,acdirmin=0", (0, 0)),
    ],
)
def test_an_nfs_mount_says_how_long_it_keeps_a_listing(
    options: str, expected: tuple[int, int]
) -> None:
    assert age(mount("/shared", options=options)) == expected
    assert age(mount("/shared", kind="nfs", options=options)) == expected


def test_a_path_lies_on_the_deepest_mount_and_on_the_last_of_one_place() -> None:
    fast = "rw,acdirmin=1,acdirmax=3"
    assert age(mount("/shared/store", options=fast), mount("/shared")) == (1, 3)
    assert age(mount("/shared", kind="autofs"), mount("/shared", options=fast)) == (1, 3)
    assert age(mount("/shared"), mount("/shared/store", kind="ext4")) is None
    assert age(mount("/share")) is None  # no part of its name
    assert age(mount("/a\\040b"), path="/a b/store") == (30, 60)


def test_no_nfs_and_nothing_that_could_be_read() -> None:
    assert age() is None
    assert age(mount("/shared", kind="lustre")) is None
    assert listing_age_s("", PurePosixPath("/store")) is None
    assert listing_age_s("what is this - \n21 1", PurePosixPath("/store")) is None

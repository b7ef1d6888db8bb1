"""`targetsweep store check`: finds every damage in a store, sets it aside, seals old stores."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dashboards.seals import unseal_json
from orchestrator import cli, paths
from orchestrator.bundleexport import export_bundle
from orchestrator.damage import refuse_unsealed
from orchestrator.errors import StoreError, UserError
from orchestrator.lease import Lease
from orchestrator.store import Store
from orchestrator.storecheck import DamagedStoreError, check_store, find_damage
from tests.bundle_stores import SWEEP, copy_of, reference
from tests.driving import tiny_plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return copy_of(reference(), tmp_path / "store")


def check(store: Store, *, repair: bool = False, seal: bool = False) -> str:
    screen = io.StringIO()
    check_store(Console(file=screen, width=300), store, repair=repair, seal=seal)
    return screen.getvalue()


def every_file(store: Store) -> list[str]:
    """Of those that carry a checksum."""
    root = store.root
    found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return sorted(
        rel for rel in found if not rel.startswith((".", "lease")) and "/report/" not in rel
    )


def test_a_sound_store(store: Store) -> None:
    assert "0 damaged" in check(store)


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_byte_in_any_file_is_found(store: Store, seed: int) -> None:
    """All at once, each in another place; only what is said twice (blanks, padding) may pass."""
    rng, files = random.Random(seed), every_file(store)
    for rel in files:
        data = bytearray(store.read_bytes(rel))
        at = rng.randrange(len(data)) if rel.endswith((".ckpt", ".parquet")) else len(data) // 2
        data[at] ^= 1 << rng.randrange(7)
        store.write_bytes(rel, bytes(data))
    found = {one.rel for one in find_damage(store)}
    covered = {rel for rel in files if not rel.startswith("datasets/")} | {"datasets/digits"}
    # weights are read by way of their records, which are damaged here too
    covered = {rel for rel in covered if not rel.endswith(".safetensors")}
    assert len(covered) > 25
    missed = covered - found
    assert all(is_blank(store, rel) for rel in missed), missed


def is_blank(store: Store, rel: str) -> bool:
    """A JSON file whose values are what they were."""
    try:
        unseal_json(json.loads(store.read_bytes(rel)))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("what", ["weights", "targets", "dataset", "run of another key"])
def test_what_is_held_against_something_else_is_found(store: Store, what: str) -> None:
    (teacher,) = [name for name in store.list("runs") if name.startswith("teacher")]
    student = next(name for name in store.list("runs") if name.startswith("student"))
    rels = {
        "weights": paths.snapshot_weights(teacher, 20),
        "targets": f"targets/{store.list('targets')[0]}",
        "dataset": "datasets/digits/train-images.npy",
        "run of another key": paths.run_json(student),
    }
    rel = rels[what]
    if what == "run of another key":
        store.write_json(rel, (store.read_json(rel) or {}) | {"key": "0" * 64})
    else:
        data = store.read_bytes(rel)
        store.write_bytes(rel, data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
    if what == "targets":  # its last bytes are Arrow's footer
        data = bytearray(reference().read_bytes(rel))
        data[len(data) // 2] ^= 4
        store.write_bytes(rel, bytes(data))
    (found,) = find_damage(store)
    assert found.rel == ("datasets/digits" if what == "dataset" else rel)
    with pytest.raises(DamagedStoreError, match=found.rel) as caught:
        check(store)
    assert caught.value.exit_status == 1


def test_repair_sets_aside_and_the_next_plan_has_it_made_again(
    store: Store, tmp_path: Path
) -> None:
    student = next(name for name in store.list("runs") if name.startswith("student"))
    store.write_bytes(paths.metrics(student), b"PAR1")
    screen = check(store, repair=True)
    assert f"damaged: {paths.metrics(student)} (" in screen
    assert f"damaged: {paths.result(student)} (its rows were damaged), set aside" in screen
    assert len(store.list(paths.damaged_dir())) == 2
    assert [unit.name for unit in tiny_plan(tmp_path, store, text=SWEEP).left] == [student]


def test_a_store_that_is_not_there_is_not_sound(tmp_path: Path) -> None:
    """Somebody mistyped it; `0 damaged` would be taken for good news."""
    absent = Store(tmp_path / "absent")
    for command in (["store", "check"], ["stop"]):
        result = CliRunner().invoke(cli.app, [*command, "--store", absent.uri])
        assert isinstance(result.exception, UserError)
        assert f"there is no store at {absent.uri}" in str(result.exception)
    assert not absent.root.exists()


def test_the_command_names_files_and_exits_with_one(store: Store) -> None:
    result = CliRunner().invoke(cli.app, ["store", "check", "--store", store.uri])
    assert (result.exit_code, "0 damaged" in result.output) == (0, True)
    student = next(name for name in store.list("runs") if name.startswith("student"))
    store.write_bytes(paths.result(student), b"{")
    result = CliRunner().invoke(cli.app, ["store", "check", "--store", store.uri])
    assert isinstance(result.exception, DamagedStoreError)
    assert paths.result(student) in str(result.exception)


# -- stores of before seals ------------------------------------------------------------------------


def unseal(store: Store) -> None:
    """As an older version wrote them."""
    for rel in every_file(store):
        data = store.read_bytes(rel)
        if rel.endswith(".json"):
            text = json.dumps(unseal_json(json.loads(data)), indent=1)
            store.write_bytes(rel, text.encode())
        elif rel.endswith("/metrics.parquet"):
            buffer = io.BytesIO()
            pq.write_table(pq.read_table(io.BytesIO(data)), buffer)
            store.write_bytes(rel, buffer.getvalue())
        elif rel.endswith(".arrow"):
            path = store.root / rel
            with pa.ipc.open_file(io.BytesIO(data)) as file:
                batch = file.get_batch(0)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)


def test_an_old_store_is_sealed_once_and_is_as_good(store: Store, tmp_path: Path) -> None:
    unseal(store)
    for act in (
        lambda: refuse_unsealed(store),
        lambda: export_bundle(store, str(tmp_path / "bundle")),
    ):
        with pytest.raises(StoreError, match="before files carried seals"):
            act()
    result = CliRunner().invoke(cli.app, ["status", "--store", store.uri])
    assert "store check --seal" in str(result.exception)
    screen = check(store, seal=True)
    assert "0 damaged" in screen
    assert "0 files sealed" in check(store, seal=True)
    refuse_unsealed(store)
    assert tiny_plan(tmp_path, store, text=SWEEP).left == []
    export_bundle(store, str(tmp_path / "bundle"))


def test_what_is_visibly_broken_gets_no_seal(store: Store) -> None:
    unseal(store)
    students = [name for name in store.list("runs") if name.startswith("student")]
    broken: dict[str, Callable[[bytes], bytes]] = {
        paths.result(students[0]): lambda data: data[:-9],
        paths.metrics(students[1]): lambda data: data[:-9],
        paths.metrics(students[2]): lambda data: data[:4] + b"\xff" * 300 + data[304:],
        f"targets/{store.list('targets')[0]}": lambda data: data[:100],
        paths.run_json(students[3]): lambda data: data.replace(b'"kind"', b'"sgz256": 1, "kind"'),
    }
    for rel, change in broken.items():
        store.write_bytes(rel, change(store.read_bytes(rel)))
    with pytest.raises(DamagedStoreError) as caught:
        check(store, seal=True)
    assert all(rel in str(caught.value) for rel in broken)
    assert f"{len(broken)}:" in str(caught.value)


def test_a_sealed_file_that_is_damaged_is_not_sealed_anew(store: Store) -> None:
    rel = f"targets/{store.list('targets')[0]}"
    data = bytearray(store.read_bytes(rel))
    data[len(data) // 2] ^= 1
    store.write_bytes(rel, bytes(data))
    with pytest.raises(DamagedStoreError, match=rel):
        check(store, seal=True)


def test_a_killed_sealing_is_finished_by_sealing_again(store: Store, tmp_path: Path) -> None:
    class Mortal(Store):
        lives = 12

        def write_bytes(self, rel: str, data: bytes) -> None:
            self.lives -= 1
            if self.lives < 0:
                raise KeyboardInterrupt
            super().write_bytes(rel, data)

    unseal(store)
    with pytest.raises(KeyboardInterrupt):
        check(Mortal(store.root), seal=True)
    with pytest.raises(StoreError, match="before files carried seals"):
        refuse_unsealed(store)
    assert "0 damaged" in check(store, seal=True)
    assert tiny_plan(tmp_path, store, text=SWEEP).left == []


def test_a_killed_old_drivers_lease_does_not_keep_it_from_being_sealed(store: Store) -> None:
    with Lease(store, "targetsweep run"):
        held = store.read_json(paths.lease()) or {}
    unseal(store)
    store.write_bytes(paths.lease(), json.dumps(held | {"pid": 2**22 + 1}).encode())
    assert "0 damaged" in check(store, seal=True)


def test_a_copied_store_is_as_good(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.root, tmp_path / "copy")
    assert find_damage(Store(tmp_path / "copy")) == []

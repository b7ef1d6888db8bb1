"""Seals: any flipped byte and any cut is noticed, or changes nothing that is read."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from dashboards.seals import (
    NoSealError,
    SealError,
    check_parquet,
    seal_json,
    seal_parquet,
    unseal_json,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=4),
    max_leaves=12,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(max_size=5).filter(lambda key: key != "sha256"), VALUES)


def text_of(obj: dict[str, Any]) -> bytes:
    """As the store writes it."""
    return (json.dumps(seal_json(obj), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode(
        errors="surrogatepass"
    )


def read_back(data: bytes) -> dict[str, Any] | None:
    """None: the damage was noticed."""
    try:
        found = json.loads(data)
        return unseal_json(found) if isinstance(found, dict) else None
    except ValueError:
        return None


# -- JSON ------------------------------------------------------------------------------------------


@given(OBJECTS)
def test_a_sealed_object_reads_back(obj: dict[str, Any]) -> None:
    sealed = seal_json(obj)
    assert unseal_json(sealed) == obj
    assert list(sealed)[-1] == "sha256"
    assert seal_json(sealed) == sealed
    assert unseal_json(json.loads(json.dumps(sealed))) == obj


@given(OBJECTS, st.data())
def test_a_flipped_byte_is_noticed_or_changes_nothing(obj: dict[str, Any], data: Any) -> None:
    text = bytearray(text_of(obj))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    assert read_back(bytes(text)) in (None, obj)


@given(OBJECTS, st.data())
def test_a_cut_is_noticed_or_changes_nothing(obj: dict[str, Any], data: Any) -> None:
    text = text_of(obj)
    assert read_back(text[: data.draw(st.integers(0, len(text) - 1))]) in (None, obj)


def test_every_flip_of_every_bit_of_a_result() -> None:
    result = {"key": "ab" * 32, "step": 300, "lr": 0.01, "presets": {"30": [1, 2.5e-8, None, True]}}
    text = text_of(result)
    read = [
        read_back(text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :])
        for at in range(len(text))
        for bit in range(8)
    ]
    assert {json.dumps(one, sort_keys=True) for one in read if one is not None} <= {
        json.dumps(result, sort_keys=True)
    }


def test_what_has_no_seal_is_told_from_what_is_damaged() -> None:
    with pytest.raises(NoSealError):
        unseal_json({"step": 1})
    with pytest.raises(SealError, match="does not fit") as caught:
        unseal_json(seal_json({"step": 1}) | {"step": 2})
    assert not isinstance(caught.value, NoSealError)


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        seal_json({"top1": float("nan")})
    with pytest.raises(SealError):
        unseal_json(seal_json({"top1": 1.0}) | {"top1": float("inf")})


def test_keys_that_are_no_strings_and_tuples_are_sealed_as_json_says_them() -> None:
    sealed = seal_json({"presets": {2: 1, 10: (1, 2)}})
    assert unseal_json(json.loads(json.dumps(sealed))) == {"presets": {"2": 1, "10": [1, 2]}}


# -- Parquet ---------------------------------------------------------------------------------------


def table(rows: int = 40) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table({"step": np.arange(rows), "top1": rng.random(rows), "replayed": [True] * rows})


def parquet(found: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(found, buffer, **options)
    return buffer.getvalue()


SEALED = seal_parquet(parquet(table(), compression="zstd"))


def is_noticed(data: bytes) -> bool:
    try:
        check_parquet(data)
    except SealError:
        return True
    return False


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zstd"}, {"row_group_size": 7}, {"write_page_index": True}],
    ids=["plain", "zstd", "groups", "page index"],
)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_every_reader_skips_the_seal(options: dict[str, Any], rows: int, tmp_path: Any) -> None:
    expected = table(rows)
    data = seal_parquet(parquet(expected, **options))
    check_parquet(data)
    assert seal_parquet(data) == data
    path = tmp_path / "metrics.parquet"
    path.write_bytes(data)
    assert pq.read_table(path).equals(expected)
    assert pq.read_table(path, memory_map=True, columns=["top1"]).equals(expected.select(["top1"]))
    assert pq.ParquetFile(io.BytesIO(data)).read().equals(expected)
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected.to_pandas())
    dataset = ds.dataset([str(path)], format="parquet", filesystem=fs.LocalFileSystem())
    assert dataset.to_table().equals(expected)
    assert dataset.to_table(filter=ds.field("step") > 20).num_rows == max(0, rows - 21)


def test_every_flipped_byte_of_a_parquet_file_is_noticed() -> None:
    for at in range(len(SEALED)):
        for mask in (1, 0x80, 0xFF):
            assert is_noticed(SEALED[:at] + bytes([SEALED[at] ^ mask]) + SEALED[at + 1 :]), at


def test_every_cut_of_a_parquet_file_is_noticed() -> None:
    assert all(is_noticed(SEALED[:length]) for length in range(len(SEALED)))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_pass_for_a_sealed_file(data: bytes) -> None:
    assert is_noticed(data)
    assert is_noticed(b"PAR1" + data + b"PAR1")


@given(st.data())
def test_bytes_added_or_taken_anywhere_are_noticed(data: Any) -> None:
    at = data.draw(st.integers(0, len(SEALED)))
    new = data.draw(st.binary(max_size=9))
    taken = data.draw(st.integers(0, 9))
    changed = SEALED[:at] + new + SEALED[at + taken :]
    assert changed == SEALED or is_noticed(changed)


def test_a_damaged_file_is_not_sealed_again() -> None:
    with pytest.raises(NoSealError):
        check_parquet(parquet(table()))
    changed = SEALED[:20] + bytes([SEALED[20] ^ 1]) + SEALED[21:]
    for broken in (changed, SEALED[:-1], b""):
        with pytest.raises(SealError):
            seal_parquet(broken)

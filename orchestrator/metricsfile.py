"""metrics.parquet of one run, read with its seal checked."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.seals import SealError, check_parquet
from orchestrator import paths
from orchestrator.errors import DamagedFileError, StoreError
from orchestrator.store import Store

__all__ = ["parse_metrics", "read_metrics"]


def read_metrics(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The rows of a run, None when it has no file. Raises DamagedFileError when the file is not
    what was once written, StoreError when it cannot be read at all."""
    rel = paths.metrics(name)
    try:
        data = store.read_bytes(rel)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return parse_metrics(data, rel, columns)


def parse_metrics(data: bytes, rel: str, columns: Sequence[str] | None = None) -> pa.Table:
    """columns: of those alone, which all must be there. Raises DamagedFileError."""
    try:
        check_parquet(data)
        # By ParquetFile: a tenth of what read_table costs, which makes a data set first.
        return pq.ParquetFile(io.BytesIO(data)).read(columns=columns)
    except SealError as error:
        raise DamagedFileError(rel, str(error)) from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedFileError(rel, f"it cannot be read: {error}") from error

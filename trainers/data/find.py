"""Where a data set's files lie, in whichever of the known layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainers.data import archive, folder, imagenet, parquet, tinyimagenet
from trainers.data.digits import DigitsSource
from trainers.data.source import Source
from trainers.errors import DataError

__all__ = ["find_source"]


def find_source(
    name: str,
    path: Path | None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Where data set `name` comes from: `digits` from scikit-learn; else, in folder `path`, the
    official archive, Parquet files, the official folders of Tiny-ImageNet or ImageNet, or other
    image folders, in that order.

    image_column, label_column: of Parquet files; None takes the usual names.
    Raises DataError, saying what was looked for, if there is nothing, and where a path or a column
    is named that nobody would read.
    """
    columns = [column for column in (image_column, label_column) if column is not None]
    if name == "digits":
        if path is not None:
            raise DataError(
                f"data set 'digits' comes with scikit-learn: nothing is read from {path}",
                "leave the path out, or give your data set another name",
            )
        return _without_columns(name, DigitsSource(), columns)
    if path is None or not path.is_dir():
        missing = "no path is given for it" if path is None else f"{path} is not a folder"
        raise DataError(f"data set {name!r} is not there: {missing}", _where_to_get(name))
    found = (
        archive.find(name, path)
        or parquet.find(name, path, image_column=image_column, label_column=label_column)
        or tinyimagenet.find(name, path)
        or imagenet.find(name, path)
        or folder.find(name, path)
    )
    if found is None:
        raise DataError(
            f"data set {name!r} is not in {path}: looked there and in {name}/ for "
            f"{', '.join(_looked_for(name))}",
            _where_to_get(name),
        )
    return found if found.kind == "parquet" else _without_columns(name, found, columns)


def _without_columns(name: str, source: Source, columns: Sequence[str]) -> Source:
    if columns:
        raise DataError(
            f"data set {name!r} has no column {columns[0]}: it is no Parquet file ({source.kind})",
            "leave image_column and label_column out",
        )
    return source


def _looked_for(name: str) -> Iterator[str]:
    if layout := archive.LAYOUTS.get(name):
        yield from (layout.filename, f"{layout.folder}/")
    yield from parquet.patterns(name, "train")
    yield "train/<class>/"


def _where_to_get(name: str) -> str:
    if name in archive.LAYOUTS:
        return "give the folder of the official archive or of Parquet files, or allow the download"
    return "give the folder that holds its Parquet files or image folders"

"""Checks the reference values against the two copies of the paper, by another way than they came.

    python sweeps/paper/reference/check.py FOLDER

FOLDER holds the text of the arXiv copy (`001_*.txt`) and of the review copy (`003_*.txt`). The
files were transcribed table row by table row; here the numbers of a table are read as one stream,
in reading order, which knows nothing of rows and columns. Three things are checked:

1. every value and every ± of the arXiv copy equals the file's, in number and order;
2. every value of the review copy equals the file's, or the file says what it prints instead;
3. every Gain equals the ratio of the printed means within 0.01.

Prints what was compared and each difference; exit status 1 when a difference is not in the files.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Check", "Row", "check_arxiv", "check_review", "gains", "read_reference"]

FOLDER = Path(__file__).parent
TABLES = (*(f"table_{number}" for number in range(1, 10)), "figure_4")
IN_REVIEW = {f"table_{number}": f"Table {number - 1}:" for number in range(2, 10)}
"""The review copy numbers its tables one lower; Table 1 and Figure 4's table are not in it."""

NUMBER = r"\d+\.\d\d(?!\d)"
_ARXIV = re.compile(rf"({NUMBER})(?: ±\S* (\d+\.\d+))?")
_LABEL = re.compile(r".*(?:Gain|Stu-Acc\.|Aug|ColorJitter|Crop|MixUp|CutMix|\t[BCВСΒΓ])\t")
"""Where a row of the review copy's text begins to be numbers; its B and C are often Cyrillic."""

Row = dict[str, str]


@dataclass
class Check:
    """compared: values looked at. differences: found, and told in the files. damaged: cells that
    the extraction cut, which agree in their digits only. faults: what the files do not tell."""

    compared: int = 0
    differences: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_reference(name: str) -> list[Row]:
    """The rows of `<name>.csv`."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def place(name: str, row: Row) -> str:
    """`table_3 step=1950 strategy=B …`, for messages."""
    values = ("value", "std", "review_value", "review_std", "status", "note")
    return " ".join([name, *(f"{key}={row[key]}" for key in row if key not in values and row[key])])


# --- the arXiv copy -------------------------------------------------------------------------------


def check_arxiv(lines: Sequence[str]) -> Check:
    """Compares values and ± of all ten files with the arXiv copy's text."""
    check = Check()
    for name in TABLES:
        printed = _ARXIV.findall(_arxiv_text(lines, name))
        rows = read_reference(name)
        if len(printed) != len(rows):
            check.faults.append(f"{name}: {len(printed)} numbers printed, {len(rows)} in the file")
        for row, (value, std) in zip(rows, printed, strict=False):
            check.compared += 1
            if (row["value"], row["std"]) != (value, std):
                check.faults.append(f"{place(name, row)}: printed {value} ± {std}, in the file not")
    return check


def _arxiv_text(lines: Sequence[str], name: str) -> str:
    """What stands between a table's caption and the next caption or heading."""
    if name == "figure_4":
        (line,) = (line for line in lines if "MobileNetV2 [36] B" in line)
        return line
    caption = f"Table {name.removeprefix('table_')}:"
    first = next(index for index, line in enumerate(lines) if line.startswith(caption))
    end = re.compile(r"$|Table|Figure|Refer to caption|Appendix")
    rest = lines[first + 1 :]
    length = next(index for index, line in enumerate(rest) if end.match(line))
    return "\n".join(rest[:length])


# --- the review copy ------------------------------------------------------------------------------


def check_review(lines: Sequence[str]) -> Check:
    """Compares the eight tables that the review copy has too, and the legible heat map."""
    check = Check()
    for name, caption in IN_REVIEW.items():
        if name == "table_4":
            _check_cut_table(check, name, _review_lines(lines, caption))
        elif name == "table_5":
            _check_spreads(check, name, "\n".join(_review_lines(lines, caption)))
        else:
            _check_cells(check, name, _review_lines(lines, caption))
    _check_heat_map(check, lines)
    return check


def _review_lines(lines: Sequence[str], caption: str) -> list[str]:
    """Lines with tabs (rows of a table) from a caption to the next one."""
    starts = [i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(caption)]
    rest = lines[starts[0] + 1 :]
    captions = re.compile(r"(# )?(Table|Figure) \d+:")
    length = next((i for i, line in enumerate(rest) if captions.match(line)), len(rest))
    return [line for line in rest[:length] if "\t" in line]


def _check_cells(check: Check, name: str, lines: Sequence[str]) -> None:
    rows = [row for row in read_reference(name) if "arXiv copy only" not in row["note"]]
    found = [cell for line in lines for cell in _cells(name, line)]
    if len(found) != len(rows):
        check.faults.append(f"{name}: the review copy has {len(found)} cells, not {len(rows)}")
    for row, cell in zip(rows, found, strict=False):
        check.compared += 1
        expected = row["review_value"] or row["value"]
        if cell == expected:
            if row["review_value"]:
                check.differences.append(f"{place(name, row)}: {row['value']} and {cell}")
        elif re.sub(r"\D", "", cell) == re.sub(r"\D", "", expected):
            check.damaged.append(f"{place(name, row)}: {expected} reads {cell!r}")
        else:
            check.faults.append(f"{place(name, row)}: the review copy has {cell}")


def _cells(name: str, line: str) -> Iterator[str]:
    """The numbers of one row; a row label or a header has none."""
    if name == "table_2":
        match = re.match(r"\d+\t", line)
    else:
        match = _LABEL.match(line)
    if match is not None:
        rest = (cell.strip() for cell in line[match.end() :].split("\t"))
        yield from (cell for cell in rest if cell not in ("", "-"))


def _check_spreads(check: Check, name: str, text: str) -> None:
    """Table 5: ± with two decimals in the review copy, one in the arXiv copy."""
    found = re.findall(rf"\$({NUMBER})\s*\\pm\s*({NUMBER})\$", text)
    rows = read_reference(name)
    if len(found) != len(rows):
        check.faults.append(f"{name}: the review copy has {len(found)} cells, not {len(rows)}")
    for row, (value, std) in zip(rows, found, strict=False):
        check.compared += 1
        if (row["value"], row["review_value"], row["review_std"]) != (value, value, std):
            check.faults.append(f"{place(name, row)}: the review copy has {value} ± {std}")
        elif abs(float(std) - float(row["std"])) > 0.05 + 1e-9:
            check.differences.append(f"{place(name, row)}: ± {row['std']} and {std}")


def _check_cut_table(check: Check, name: str, lines: Sequence[str]) -> None:
    """Table 4: the extraction cut its rows at wrong columns, so digits may be lost or doubled."""
    rows = read_reference(name)
    texts = [line for line in lines if len(re.findall(NUMBER, line)) >= 5][:6]
    for index, row in enumerate(rows):
        check.compared += 1
        text = texts[index // 8]
        if row["value"] in re.findall(NUMBER, text):
            continue
        digits = iter(_between(text, rows, index))
        if all(character in digits for character in row["value"]):
            told = f" ({row['note']})" if "review copy" in row["note"] else ""
            check.damaged.append(f"{place(name, row)}: {row['value']} agrees in its digits{told}")
        else:
            check.faults.append(f"{place(name, row)}: {row['value']} is not in {text!r}")


def _between(text: str, rows: Sequence[Row], index: int) -> str:
    """Digits of a cut row between its neighbours that are whole."""
    whole = set(re.findall(NUMBER, text))
    row = [row["value"] for row in rows[index - index % 8 : index - index % 8 + 8]]
    before = [value for value in row[: index % 8] if value in whole]
    after = [value for value in row[index % 8 + 1 :] if value in whole]
    start = text.index(before[-1]) + len(before[-1]) if before else 0
    stop = text.index(after[0], start) if after else len(text)
    return re.sub(r"[^\d.]", "", text[start:stop])


def _check_heat_map(check: Check, lines: Sequence[str]) -> None:
    """Figure 9 of the review copy: two maps side by side, rows `label -`, columns in tabs."""
    columns = ("none", "color", "crop", "mixup", "cutmix")
    labels = {"utMix -": "cutmix", "4ixUp -": "mixup", "Crop -": "crop"}
    found: dict[tuple[str, ...], str] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        row = labels.get(cells[0])
        for teacher, values in (("30", cells[1:6]), ("50", cells[-5:])):
            for column, value in zip(columns, values, strict=False):
                if row is not None and re.fullmatch(NUMBER, value):
                    found[teacher, row, column] = value
    names = ("teacher.accuracy", "augmentation", "teacher.augmentation")
    held = {
        tuple(row[n] for n in names): row["review_value"] for row in read_reference("figure_6b")
    }
    check.compared += len(held)
    if held != found:
        check.faults.append(f"figure_6b: {set(held.items()) ^ set(found.items())}")


# --- gains ----------------------------------------------------------------------------------------


def gains() -> Iterator[tuple[str, str, float]]:
    """Every Gain: where, as printed, and the ratio of the printed means."""
    for name in TABLES:
        rows = read_reference(name)
        field_name, of, to = _contrast(name)
        for row in rows:
            if row["kind"] == "gain":
                pair = [_mean(rows, row, field_name, side) for side in (of, to)]
                yield place(name, row), row["value"], pair[0] / pair[1]


def _contrast(name: str) -> tuple[str, str, str]:
    if name == "table_1":
        return "metric", "ours", "standard"
    return "strategy", "C", "A" if name == "table_8" else "B"


def _mean(rows: Sequence[Row], gain: Row, field_name: str, side: str) -> float:
    """The mean a Gain divides; strategy A's has no teacher."""
    coordinates = [key for key in gain if key not in (field_name, *_NO_COORDINATE)]
    if side == "A":
        coordinates.remove("teacher.accuracy")
    (value,) = (
        row["value"]
        for row in rows
        if row["kind"] == "mean"
        and row[field_name] == side
        and all(row[key] == gain[key] for key in coordinates)
    )
    return float(value)


_NO_COORDINATE = ("kind", "value", "std", "review_value", "review_std", "status", "note")


def main(folder: Path) -> int:
    """Prints the comparison; 1 when something is wrong."""
    faults: list[str] = []
    for copy, pattern, compare in (
        ("arXiv copy", "001_*.txt", check_arxiv),
        ("review copy", "003_*.txt", check_review),
    ):
        (file,) = folder.glob(pattern)
        check = compare(file.read_text(encoding="utf-8").splitlines())
        print(f"{copy}: {check.compared} values compared, {len(check.faults)} faults")
        for text in (*check.differences, *check.damaged):
            print(f"  {text}")
        faults += check.faults
    print("Gains that are not the ratio of the printed means, rounded:")
    for where, printed, ratio in gains():
        if abs(ratio - float(printed)) > 0.005:
            print(f"  {where}: {printed}, the means give {ratio:.4f}")
        if abs(ratio - float(printed)) > 0.01:
            faults.append(f"{where}: {printed}, the means give {ratio:.4f}")
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(
            "usage: python sweeps/paper/reference/check.py FOLDER (with the text of both copies)"
        )
    sys.exit(main(Path(sys.argv[1])))

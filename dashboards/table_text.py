"""Tables as text, in the paper's layout: Markdown and LaTeX.

Equal measurements give equal bytes. The paper's numbers, which a page prints small below ours, have
a line of their own here: it reads as well in a terminal as it does typeset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dashboards.grids import Grid, Head, grids
from dashboards.notes import notes
from dashboards.tables import Table

__all__ = ["latex", "markdown", "pipe_table"]

_PAPER = "paper"


def markdown(table: Table) -> str:
    """Heading, blocks and notes."""
    parts = [f"### {_escape_markdown(table.title)}"]
    for grid in grids(table):
        parts += [grid.caption] if grid.caption else []
        parts.append(_markdown_grid(grid))
    parts.append(" ".join(notes(table)))
    return "\n\n".join(parts) + "\n"


def pipe_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, num_keys: int) -> str:
    """A Markdown table of texts as they are; the first num_keys columns are names, the others
    numbers."""
    align = ["---"] * num_keys + ["---:"] * (len(heads) - num_keys)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, align, *rows))


def _markdown_grid(grid: Grid) -> str:
    lines: list[list[str]] = []
    for index, line in enumerate(grid.body):
        texts = [_escape_markdown(text) for text in line]
        lines.append(
            [
                f"**{t}**" if bold and t else t
                for t, bold in zip(texts, grid.bold[index], strict=True)
            ]
        )
        if any(grid.seconds[index]):
            lines.append([_escape_markdown(text) for text in _paper_line(grid, index)])
    heads = [_escape_markdown(text) for text in grid.header]
    return pipe_table(heads, lines, num_keys=grid.num_keys)


def _paper_line(grid: Grid, index: int) -> list[str]:
    """The small print of a line as a line of its own, named once."""
    keys = [""] * (grid.num_keys - 1) + [_PAPER]
    texts = grid.seconds[index][grid.num_keys :]
    return keys + [text.removeprefix(f"{_PAPER} ") for text in texts]


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def latex(table: Table) -> str:
    """A booktabs `tabular` a block, in one `table` environment; needs \\usepackage{booktabs}."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape_latex(table.title)}}}"]
    for grid in grids(table):
        lines += [rf"\par\medskip {_escape_latex(grid.caption)}\par"] if grid.caption else []
        lines += [_latex_grid(grid)]
    lines += [rf"\par\smallskip {{\footnotesize {_escape_latex(' '.join(notes(table)))}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_grid(grid: Grid) -> str:
    align = "l" * grid.num_keys + "r" * (len(grid.header) - grid.num_keys)
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    for heads in grid.head_lines:
        lines += _latex_heads(heads)
    lines.append(r"\midrule")
    previous: list[str] = []
    for index, line in enumerate(grid.body):
        if index and grid.num_keys > 1 and line[0] != previous[0]:
            lines.append(r"\addlinespace")
        lines.append(_latex_line(_unrepeated(line, previous, grid.num_keys), grid.bold[index]))
        if any(grid.seconds[index]):
            small = [_small(text) for text in _paper_line(grid, index)]
            lines.append(" & ".join(small) + r" \\")
        previous = line
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_heads(heads: tuple[Head, ...]) -> list[str]:
    """A header line, with a rule under the heads that span columns."""
    texts, rules, first = [], [], 1
    for head in heads:
        text = _escape_latex(head.text)
        texts.append(rf"\multicolumn{{{head.span}}}{{c}}{{{text}}}" if head.span > 1 else text)
        if head.span > 1:
            rules.append(rf"\cmidrule(lr){{{first}-{first + head.span - 1}}}")
        first += head.span
    return [" & ".join(texts) + r" \\", *([" ".join(rules)] if rules else [])]


def _unrepeated(line: list[str], previous: list[str], num_keys: int) -> list[str]:
    """The line without the outer keys that the line above has too."""
    shown = list(line)
    for index in range(min(num_keys - 1, len(previous))):
        if line[: index + 1] == previous[: index + 1]:
            shown[index] = ""
    return shown


def _latex_line(texts: list[str], bold: list[bool]) -> str:
    escaped = [
        rf"\textbf{{{_escape_latex(text)}}}" if is_bold and text else _escape_latex(text)
        for text, is_bold in zip(texts, bold, strict=True)
    ]
    return " & ".join(escaped) + r" \\"


def _small(text: str) -> str:
    return rf"{{\scriptsize {_escape_latex(text)}}}" if text else ""


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "†": r"$^{\dagger}$", "—": "---",
    "·": r"$\cdot$", "φ": r"$\varphi$", "λ": r"$\lambda$", "[": "{[}", "]": "{]}",
}  # fmt: skip
_LATEX_SPECIAL = re.compile("|".join(re.escape(character) for character in _LATEX))


def _escape_latex(text: str) -> str:
    # brackets are braced because `\\ [` would be read as the row's extra space
    return _LATEX_SPECIAL.sub(lambda match: _LATEX[match.group()], text)

"""YAML with the line of every key and item, and errors that name it.

The file is composed into nodes first: PyYAML's plain `safe_load` forgets lines and lets the last of
two equal keys win in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.errors import Problem

__all__ = ["KeyPath", "Source", "dotted", "read_yaml"]

KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """`("grids", 0, "axes")` as people write it: `grids[0].axes`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


@dataclass(frozen=True)
class Source:
    """data: the file's value (an empty mapping when it could not be read). lines: line of each key
    and each list item, by path."""

    file: str
    data: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int | None:
        """Line of `path`, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def problem(
        self,
        path: KeyPath,
        message: str,
        remedy: str = "",
        *,
        value: object = None,
        like: str | None = None,
    ) -> Problem:
        """What is wrong at `path`, with its line. like: the valid name nearest to the one given."""
        return Problem(
            file=self.file,
            key=dotted(path) or "(file)",
            line=self.line(path),
            message=message,
            value=value,
            nearest=like,
            remedy=remedy,
        )


def read_yaml(path: Path) -> Source:
    """Reads one file. Nothing is raised: what is wrong stands in `problems`."""
    problems: list[Problem] = []
    lines: dict[KeyPath, int] = {}
    try:
        data = _Composer(str(path), lines, problems).read(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(_unreadable(path, f"cannot be read: {error.strerror}"))
        data = {}
    except UnicodeDecodeError as error:
        problems.append(_unreadable(path, f"is not UTF-8 (byte {error.start})"))
        data = {}
    return Source(str(path), data, lines, problems)


def _unreadable(path: Path, message: str) -> Problem:
    return Problem(file=str(path), key="(file)", message=message)


class _Composer:
    def __init__(self, file: str, lines: dict[KeyPath, int], problems: list[Problem]) -> None:
        self.file = file
        self.lines = lines
        self.problems = problems

    def read(self, text: str) -> Mapping[str, Any]:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if isinstance(node, MappingNode):
                self._walk(loader, node, ())
                if not self.problems:
                    data: Mapping[str, Any] = loader.construct_document(node)
                    return data
            else:
                self._problem(1, "(file)", "is not a mapping", "start with `name: …`")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else None
            self._problem(line, "(syntax)", str(error.problem or error.context))
        except (
            yaml.YAMLError,
            ValueError,
            RecursionError,
        ) as error:  # an impossible date; *a in &a
            self._problem(None, "(syntax)", str(error))
        finally:
            loader.dispose()
        return {}

    def _walk(self, loader: yaml.SafeLoader, node: Node, path: KeyPath) -> None:
        if isinstance(node, MappingNode):
            self._refuse_twins(node, path)
            loader.flatten_mapping(node)  # `<<`: merged keys come first, so that own keys win
            for key_node, value_node in node.value:
                self.lines[(*path, key_node.value)] = key_node.start_mark.line + 1
                self._walk(loader, value_node, (*path, key_node.value))
            node.value = [(_name(key_node), value_node) for key_node, value_node in node.value]
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                self._walk(loader, item, (*path, index))

    def _refuse_twins(self, node: MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key_node.value in first:
                message = f"stands twice (first in line {first[key_node.value]})"
                key = dotted((*path, key_node.value))
                self._problem(line, key, message, "keep one of the two")
            first.setdefault(key_node.value, line)

    def _problem(self, line: int | None, key: str, message: str, remedy: str = "") -> None:
        self.problems.append(
            Problem(file=self.file, key=key, line=line, message=message, remedy=remedy)
        )


def _name(key_node: ScalarNode) -> ScalarNode:
    """Keys are names, whatever YAML makes of them: `no: 1` must not become False."""
    return ScalarNode("tag:yaml.org,2002:str", key_node.value, key_node.start_mark)

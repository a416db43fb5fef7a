"""Edits of Python source by syntax: statements are found in the syntax tree and cut, replaced or added to by the line.

All other lines, comments and line ends stay as they are. Nothing here knows what is edited.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from llava.errors import InputError

Node = TypeVar("Node", bound=ast.AST)
Block = ast.Module | ast.ClassDef | ast.FunctionDef


class Source:
    """The text of one module and the edits to it.

    Args:
        name: what errors call it.

    Raises:
        InputError: the text is not Python.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        try:
            self.tree = ast.parse(text)
        except SyntaxError as error:
            raise InputError(f"{name}, line {error.lineno}: not Python ({error.msg})") from error
        self._lines = re.split(r"(?<=\n)", text)  # as the parser counts them; str.splitlines knows more line ends
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._new: dict[int, str] = {}  # line number from 1 on -> what stands there instead

    def missing(self, what: str) -> InputError:
        """The error for a piece that should be there."""
        return InputError(f"{self.name}: {what} was not found")

    def class_named(self, name: str) -> ast.ClassDef:
        """A class of the module."""
        return self.only((n for n in self.tree.body if isinstance(n, ast.ClassDef) and n.name == name), f"class {name}")

    def function(self, block: Block, name: str) -> ast.FunctionDef:
        """A function of a module or class."""
        found = (node for node in block.body if isinstance(node, ast.FunctionDef) and node.name == name)
        return self.only(found, f"{name}() of {getattr(block, 'name', 'the module')}")

    def only(self, nodes: Iterable[Node], what: str) -> Node:
        """The one node that was looked for.

        Raises:
            InputError: there is none, or more than one.
        """
        found = list(nodes)
        if not found:
            raise self.missing(what)
        if len(found) > 1:
            lines = ", ".join(str(getattr(node, "lineno", "?")) for node in found)
            raise InputError(f"{self.name}: {what} is there {len(found)} times (lines {lines}), once was expected")
        return found[0]

    def cut(
        self, block: Block, nodes: Sequence[ast.stmt], about: Callable[[str], bool] = lambda comment: False
    ) -> None:
        """Take statements out of a block, with the blank lines that separate them from the next one.

        Args:
            about: whether a comment block beside them goes too.
        """
        doomed = set(nodes)
        for node in nodes:
            self._check_own_lines(node)
            self._blank(range(_first_line(node), _last_line(node) + 1))
        last_kept = max((n for n, node in enumerate(block.body) if node not in doomed), default=-1)
        for number, (before, after) in enumerate(pairwise(block.body)):
            if before in doomed or after in doomed:
                gap = range(_last_line(before) + 1, _first_line(after))
                self._cut_comments(gap, about)
                if before in doomed or number >= last_kept:  # else it is the gap before whatever follows
                    self._blank_empty(gap)

    def replace(self, node: ast.stmt, text: str) -> None:
        """Put other lines, given without indentation, in the place of a statement."""
        self._check_own_lines(node)
        first = _first_line(node)
        self._blank(range(first, _last_line(node) + 1))
        self._new[first] = self._indented(node, text)

    def add_before(self, node: ast.stmt, text: str) -> None:
        """Put lines, given without indentation, before a statement."""
        self._check_own_lines(node)
        first = _first_line(node)
        self._new[first] = self._indented(node, text) + self._now(first)

    def add_after(self, node: ast.stmt, text: str) -> None:
        """Put lines, given without indentation, after a statement."""
        self._check_own_lines(node)
        last = _last_line(node)
        line = self._now(last)
        self._new[last] = (line if line.endswith("\n") else line + self._newline) + self._indented(node, text)

    def replace_expression(self, node: ast.expr, text: str) -> None:
        """Put another expression in the place of one that stands in a single line, before other edits of that line."""
        if node.end_lineno != node.lineno or node.lineno in self._new:
            raise InputError(f"{self.name}, line {node.lineno}: {ast.unparse(node)!r} is not in a line of its own")
        line = self._lines[node.lineno - 1].encode()
        self._new[node.lineno] = (line[: node.col_offset] + text.encode() + line[node.end_col_offset :]).decode()

    def result(self) -> str:
        """The edited text; the edits are done with.

        Raises:
            InputError: it is no Python any more.
        """
        text = "".join(self._now(number) for number in range(1, len(self._lines) + 1))
        return Source(f"{self.name} as edited", text).text

    @property
    def text(self) -> str:
        """The text before any edit."""
        return "".join(self._lines)

    def _now(self, line: int) -> str:
        return self._new.get(line, self._lines[line - 1])

    def _indented(self, node: ast.stmt, text: str) -> str:
        indent = " " * node.col_offset
        return "".join(f"{indent}{line}".rstrip() + self._newline for line in text.splitlines())

    def _blank(self, lines: Iterable[int]) -> None:
        for line in lines:
            self._new[line] = ""

    def _check_own_lines(self, node: ast.stmt) -> None:
        before = self._lines[node.lineno - 1].encode()[: node.col_offset].strip()
        after = self._lines[_last_line(node) - 1].encode()[node.end_col_offset or 0 :].strip()
        if before or (after and not after.startswith(b"#")):
            raise InputError(f"{self.name}, line {node.lineno}: more than one statement in a line")

    def _blank_empty(self, lines: Iterable[int]) -> None:
        self._blank(line for line in lines if not self._lines[line - 1].strip())

    def _cut_comments(self, gap: range, about: Callable[[str], bool]) -> None:
        """Blocks of comment lines, each with the blank lines after it."""
        blocks: list[list[int]] = [[]]
        for line in gap:
            comment = self._lines[line - 1].lstrip().startswith("#")
            if comment and blocks[-1] and blocks[-1][-1] != line - 1:
                blocks.append([])
            if comment:
                blocks[-1].append(line)
        for block, following in pairwise([*blocks, [gap.stop]]):
            if block and about("".join(self._lines[line - 1] for line in block)):
                self._blank(block)
                self._blank_empty(range(block[-1] + 1, following[0]))


def identifiers(node: ast.AST) -> Iterator[str]:
    """Names, attributes, parameters and keyword arguments that a piece of code has."""
    for part in ast.walk(node):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(part, field, None)
            if isinstance(value, str):
                yield value


def undefined_names(text: str) -> set[str]:
    """Global names that a module uses and neither defines, imports nor finds among the builtins."""
    module = symtable.symtable(text, "module", "exec")
    known = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    known |= {symbol.get_name() for symbol in module.get_symbols() if symbol.is_namespace()}
    known |= set(dir(builtins)) | {"__file__", "__name__"}
    used: set[str] = set()
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is module)}
        known |= {s.get_name() for s in table.get_symbols() if s.is_declared_global() and s.is_assigned()}
    return used - known


def _last_line(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(part.lineno for part in (node, *decorators))

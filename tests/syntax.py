"""The project's own sources as syntax trees, for the tests that prove what imports what and what is never called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("masking", "pretrain", "launch", "configs", "slurm")


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, its dotted name, its text and its tree."""

    path: str
    module: str
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Import:
    """One imported name, as `a.b.c`; whether it is a module or something inside one is not known."""

    name: str
    line: int


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Every Python file below the folders, in order of path."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(read(path) for path in paths)


def read(path: Path, root: Path = ROOT) -> Source:
    """The file at path, parsed; its dotted name is taken from the root."""
    inside = path.relative_to(root)
    parts = inside.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Source(inside.as_posix(), module, text, ast.parse(text, filename=str(path)))


def imports(source: Source) -> Iterator[Import]:
    """Every import of a file; lazy ones, those for type checkers and `importlib.import_module("a.b")` are included."""
    package = source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _callee(node).endswith("import_module") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Import(first.value, node.lineno)


def names(source: Source) -> Iterator[tuple[str, int]]:
    """Every dotted name a file mentions, with its line; imported names are spelled out: np.load is numpy.load."""
    known = _imported_as(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield spelled_out(node, known), node.lineno


def calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file with the dotted name it calls, spelled out."""
    known = _imported_as(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield spelled_out(node.func, known), node


def spelled_out(node: ast.expr, known: dict[str, str]) -> str:
    """`np.load` -> "numpy.load"; what hangs on a call or an index starts with "?"."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{spelled_out(node.value, known)}.{node.attr}"
    return "?"


def _callee(node: ast.Call) -> str:
    return spelled_out(node.func, {})


def _imported_as(tree: ast.Module) -> dict[str, str]:
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return known

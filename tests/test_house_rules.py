"""The rules of the house that a machine can check: the shape of files, words beside settings, who reads what."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from tests.syntax import PACKAGES, ROOT, Source, names, sources

FOLDERS = (*PACKAGES, "benchmarks", "tests")
TEXTS = ("*.md", "*.toml", "*.txt", "*.sh", "*.sbatch", "Makefile", "LICENSE", ".ci/run", ".pre-commit-config.yaml")
MAX_LINES = 300
LONGER_FILES = {  # path -> why it may be longer
    "tests/engine/cases.py": "what forked ranks run: one short function a case, and they share their small model",
    "tests/engine/checkpoint_cases.py": "the same, for checkpoints",
}
NAMELESS = {"utils", "util", "misc", "common", "helpers"}
ENVIRONMENT_READERS = {"launch/environment.py"}


def _files(patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from ROOT.glob(pattern)
        for folder in ("docs", "slurm", "benchmarks", *PACKAGES):
            yield from (ROOT / folder).rglob(pattern)


def test_code_and_pages_are_ascii() -> None:
    for path in [ROOT / source.path for source in sources(*FOLDERS)] + sorted(set(_files(TEXTS))):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert line.isascii(), f"{path.relative_to(ROOT)}:{number}: {line}"


def test_files_stay_under_300_lines() -> None:
    lengths = {source.path: source.text.count("\n") for source in sources(*FOLDERS)}
    assert {path: n for path, n in lengths.items() if n > MAX_LINES and path not in LONGER_FILES} == {}
    assert [path for path in LONGER_FILES if lengths.get(path, 0) <= MAX_LINES] == [], "needless exceptions"


def test_functions_stay_under_40_lines_or_say_why_they_are_long() -> None:
    too_long = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources(*FOLDERS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 40
        if "# long:" not in (ast.get_source_segment(source.text, node) or "")
    ]
    assert too_long == []


def test_a_file_is_named_for_its_idea() -> None:
    assert [source.path for source in sources(*FOLDERS) if Path(source.path).stem in NAMELESS] == []


def test_every_file_says_what_it_is() -> None:
    for source in sources(*PACKAGES, "benchmarks"):
        if source.text.strip():
            assert ast.get_docstring(source.tree), f"{source.path} has no docstring"


def test_every_public_name_says_what_comes_back() -> None:
    missing = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources("masking", "pretrain", "launch")
        for node in _public(source.tree.body)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_every_setting_has_its_meaning_beside_it() -> None:
    silent = []
    for source in sources("masking", "pretrain"):
        comments = _comments(source.text)
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and _is_settings(source, node):
                fields = [line for line in node.body if isinstance(line, ast.AnnAssign) and not _is_classvar(line)]
                silent += [
                    f"{source.path}:{field.lineno} {ast.unparse(field.target)}"
                    for field in fields
                    if not comments.get(field.end_lineno or field.lineno)
                ]
    assert silent == []


def test_the_environment_is_read_in_one_file() -> None:
    readers = {
        source.path
        for source in sources(*PACKAGES)
        for name, _ in names(source)
        if re.match(r"os\.(environ|environb|getenv|getenvb|putenv|unsetenv)\b", name)
    }
    assert readers <= ENVIRONMENT_READERS


def _public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes and their public methods. An override speaks through the method of its base in the same
    file, the stub of a protocol through whoever implements it, a setter through its property."""
    spoken = {
        (node.name, method.name)
        for node in body if isinstance(node, ast.ClassDef)
        for method in node.body if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not _is_stub(node):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node
            bases = [ast.unparse(base) for base in node.bases]
            yield from (method for method in _public(node.body)
                        if not any((base, method.name) in spoken for base in bases))


def _is_stub(node: ast.FunctionDef) -> bool:
    is_setter = any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list)
    return is_setter or (len(node.body) == 1 and ast.unparse(node.body[0]) == "...")


def _is_settings(source: Source, node: ast.ClassDef) -> bool:
    """Whether a class is part of a config: a dataclass named Config, or a strategy or ratio of masking."""
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    is_mask = source.path.startswith("masking/strategies/") or source.path == "masking/ratio.py"
    return is_dataclass and not node.name.startswith("_") and (node.name.endswith("Config") or is_mask)


def _is_classvar(node: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(node.annotation)


def _comments(text: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(text).readline)
    return {token.start[0]: token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT}

"""The pages tell the truth: their commands parse, their settings exist, their links lead somewhere, their code runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from launch import cli
from masking.draw import draw
from masking.mask import Grid
from pretrain import errors
from pretrain.config import Config, apply_overrides, load_config
from tests.syntax import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_COMMAND = re.compile(r"(?:\blacuna|-m launch\.cli|--module launch\.cli) (?=[a-z]+ )([^`\n#]+)")


def _commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `lacuna VERB ...` in a page's code; a line cut short by "..." is left out."""
    text = page.read_text()
    code = re.findall(r"```\n(.*?)```", text, re.DOTALL) + re.findall(r"`(lacuna [^`]+)`", text)
    for match in _COMMAND.finditer("\n".join(code).replace("\\\n", " ")):
        if not {"...", "--help"} & set(match.group(1).split()) and not re.search(r"\b[A-Z]{3,}\b", match.group(1)):
            yield shlex.split(match.group(1))


COMMANDS = [(page.name, arguments) for page in PAGES for arguments in _commands(page)]


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("page", "arguments"), COMMANDS, ids=[f"{page}: {' '.join(a)}" for page, a in COMMANDS])
def test_a_command_in_the_pages_is_one_the_program_takes(page: str, arguments: list[str]) -> None:
    options = cli._parser().parse_args(arguments)  # leaves by SystemExit where it does not fit
    for key in getattr(options, "overrides", []):
        assert "=" in key, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", page.read_text()):
        assert not target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_sections_meet_a_heading(page: Path) -> None:
    for target, section in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]*)\)", page.read_text()):
        other = page.parent / target if target else page
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert section in slugs, f"{page.name} links to {target}#{section}"


CONFIGS = (
    "mae_vitb16", "illama_b16_mae", "maskalign_vitb16", "illama_b16_supervised", "tokenizer_fsq_cifar", "maskgit_cifar",
    "mage_cifar", "mar_cifar", "finetune_cifar", "segment_camvid",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_named_in_the_pages_exist(page: Path) -> None:
    configs = [load_config(ROOT / "configs" / f"{name}.py") for name in CONFIGS]
    sections = "data|backbone|objective|optim|engine|checkpoint|tracking|evaluation"
    for override in re.findall(rf"`((?:{sections})\.[a-z_.]+=[^`\s]+)`", page.read_text()):
        assert any(_takes(config, override.replace("'", "")) for config in configs), override
    for key in re.findall(rf"`((?:{sections})\.[a-z_]+)`", page.read_text()):
        section, _, field = key.partition(".")
        known = any(hasattr(getattr(config, section), field) for config in configs)
        assert known or (ROOT / "pretrain" / section / f"{field}.py").exists(), key


def _takes(config: Config, override: str) -> bool:
    try:
        apply_overrides(config, [override])
    except errors.ConfigError:
        return False
    return True


def test_every_exit_code_is_explained() -> None:
    table = (ROOT / "docs" / "train.md").read_text()
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    for code in codes | {0}:
        assert re.search(rf"^\| .*\b{code}\b.* \| .* \| .* \|$", table, re.MULTILINE), code


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The strategy of docs/write-a-mask.md, as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "write-a-mask.md").read_text(), re.DOTALL)
    path = tmp_path_factory.mktemp("docs") / "docs_example_band.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_the_example_mask_is_a_band_and_the_same_on_any_number_of_processes(example: ModuleType) -> None:
    grid, strategy = Grid(8, 6), example.Band(jitter=0.0)
    whole = draw(strategy, grid, torch.arange(4), seed=3, step=7).hidden
    halves = [draw(strategy, grid, torch.arange(rank, 4, 2), seed=3, step=7).hidden for rank in range(2)]
    assert torch.equal(whole[0::2], halves[0])
    assert torch.equal(whole[1::2], halves[1])
    assert int((~whole).sum(1).unique()) == 12
    visible_rows = (~whole).reshape(4, 8, 6).any(2)
    for rows in visible_rows:  # 12 patches of 6 a row: two or three rows that touch
        ids = rows.nonzero().flatten()
        assert len(ids) in (2, 3)
        assert int(ids[-1] - ids[0]) == len(ids) - 1

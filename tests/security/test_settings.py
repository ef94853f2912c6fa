"""Settings from strangers: JSON and TOML name our own settings or are refused; nothing they name is imported or run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.site import read_site
from pretrain import strict_json
from pretrain.config import read_config, write_config
from pretrain.errors import ConfigError
from tests.engine.load_cases import CONFIG
from tests.security import payloads


@pytest.mark.parametrize("text", payloads.configs().values(), ids=payloads.configs().keys())
def test_a_config_json_that_is_not_ours_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_a_config_json_imports_nothing_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("evil_module:X", "pretrain.evil_module:X", "masking/../evil_module:X", ".evil_module:X"):
        path = tmp_path / "config.json"
        path.write_text(f'{{"type": "{name}"}}')
        with pytest.raises(ConfigError):
            read_config(path)
    assert "evil_module" not in sys.modules and not (tmp_path / "canary").exists()


def test_what_we_write_is_read_and_a_type_may_be_any_of_ours_but_fits_only_its_place(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(CONFIG, path)
    assert read_config(path) == CONFIG
    text = path.read_text()
    path.write_text(text.replace("pretrain.objectives.pixel:PixelMAEConfig", "pretrain.data.fetch:Cache"))
    with pytest.raises(ConfigError, match="unknown settings"):
        read_config(path)
    other = '{"type": "pretrain.data.settings:DataConfig", "train": "x"}'
    path.write_text(text.replace('"name": "first"', f'"name": {other}'))
    with pytest.raises(ConfigError, match="it must be text"):
        read_config(path)


@pytest.mark.parametrize("verb", ["evaluate", "export", "generate", "tokenize", "report"])
def test_no_verb_runs_a_run_whose_config_names_a_foreign_type(tmp_path: Path, verb: str) -> None:
    (tmp_path / "config.json").write_text('{"backbone": {"type": "os:system"}, "type": "subprocess:Popen", "data": {}}')
    more = {"export": ["-o", str(tmp_path / "x")], "tokenize": ["a.tar", str(tmp_path / "out")]}.get(verb, [])
    assert main([verb, str(tmp_path), *more]) in (77, 78)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"a": 1, "a": 2}}', "'a' comes twice"), ("[" * 65 + "]" * 65, "deeper than 64"),
        ("[" * 200_000, "deeper than 64"), ('{"a":' * 65 + "1" + "}" * 65, "deeper than 64"), ("1" * 5000, "digits"),
    ],
)  # fmt: skip
def test_json_is_read_strictly(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        strict_json.loads(text)


def test_json_within_its_limits_is_read_as_python_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert strict_json.loads(b'{"a": [1, 2.5, null, {"b": "\\u00e4"}]}') == {"a": [1, 2.5, None, {"b": "\u00e4"}]}
    assert strict_json.loads("[" * 64 + "]" * 64)
    monkeypatch.setattr(strict_json, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="12 bytes of JSON, and at most 10"):
        strict_json.loads('"0123456789"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"), ('partition = "a"\npartition = "b"', "cannot be read"),
        ('partition = "gpu\\ntouch x"', "line break"), ('setup = ["a\\rb"]', "line break"),
        ('__class__ = "os"', "__class__"),
        ('modules = [["a"]]', "list of texts"), ('[partition]\nx = "y"', "must be a text"), ("\x00", "cannot be read"),
    ],
)  # fmt: skip
def test_a_site_file_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_site(path)

"""Checkpoints that others could have written are refused before a byte is parsed, unless the user trusts them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.engine import trust
from pretrain.engine.commit import BadCheckpoint, verify
from pretrain.engine.load import load_backbone
from pretrain.engine.published import read_newest
from pretrain.engine.trust import TRUST, objection
from pretrain.errors import CheckpointError
from pretrain.objectives.reconstruction import ReconstructionConfig
from pretrain.tokenizers.fsq import FSQConfig
from pretrain.tokenizers.trained import ConvTokenizerConfig
from tests.engine.load_cases import CONFIG, save
from tests.security import payloads
from tests.zygote import shared

CASES = "tests/engine/checkpoint_cases.py"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run with two whole checkpoints of the user's own."""
    save(tmp_path / "first", 5)
    save(tmp_path / "first", 6)
    yield tmp_path / "first"
    TRUST.everyone = False


def newest(run: Path) -> Path:
    return max((run / "ckpt").iterdir(), key=lambda path: path.name)


def places(run: Path) -> list[Path]:
    """Whatever decides about a checkpoint's content."""
    return [run, run / "config.json", run / "ckpt", newest(run), *sorted(newest(run).iterdir())]


def test_what_everybody_may_write_is_refused_wherever_it_lies(run: Path) -> None:
    assert load_backbone(run).step == 6
    for path in places(run):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | 0o002)
        with pytest.raises(CheckpointError, match=f"{path.name} may be written by everybody .*--trust"):
            load_backbone(run)
        path.chmod(mode)
    assert load_backbone(run).step == 6


def test_what_another_user_owns_is_refused_and_roots_own_is_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = run.stat().st_uid
    monkeypatch.setattr(trust.os, "geteuid", lambda: owner + 12_345)  # we are another than who wrote it
    reason = objection(run, [newest(run)])
    if owner == 0:
        assert reason is None, "root could read and write all of ours anyway"
        for path in (newest(run), newest(run) / "COMMIT.json"):
            os.chown(path, 4711, -1)
            assert "belongs to user 4711" in str(objection(run, [newest(run)]))
            os.chown(path, 0, -1)
    else:
        assert f"belongs to user {owner}, and neither to you ({owner + 12_345}) nor to root" in str(reason)
        assert objection(run, [newest(run)], own=owner) is None, "what the file system calls us counts as we do"


def test_a_group_may_write_as_in_shared_projects(run: Path) -> None:
    for path in places(run):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o020)
    assert load_backbone(run).step == 6


@pytest.mark.parametrize("verb", ["evaluate", "export", "generate", "tokenize"])
def test_every_verb_that_reads_checkpoints_refuses_and_takes_trust(
    run: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb == "tokenize":
        tokenizer = ConvTokenizerConfig(FSQConfig((5, 4, 3)), patch_size=4, width=16, blocks=1)
        save(run, 7, config=replace(CONFIG, backbone=tokenizer, objective=ReconstructionConfig(), mask=None))
    newest(run).chmod(0o777)
    out = str(run / "out" / "x.safetensors")
    more = {"export": ["-o", out], "tokenize": [str(run), out]}.get(verb, [])
    assert main([verb, str(run), *more]) in (77, 78)
    refused = capsys.readouterr().err
    assert main([verb, str(run), *more, "--trust"]) in (0, 78)
    assert "may be written by everybody" in refused
    assert "may be written by everybody" not in capsys.readouterr().err


def test_trust_lasts_for_one_command(run: Path) -> None:
    newest(run).chmod(0o777)
    trusted, refused = (str(run / name / "x.safetensors") for name in ("trusted", "refused"))
    assert main(["export", str(run), "-o", trusted, "--trust"]) == 0
    assert main(["export", str(run), "-o", refused]) == 77
    assert Path(trusted).exists() and not Path(refused).exists()


def test_going_on_with_a_run_that_others_could_have_written_is_refused_on_all_ranks(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    assert all(outcome.value for outcome in shared().run(f"{CASES}:saved", 2, {"run_dir": run_dir}))
    newest(Path(run_dir)).chmod(0o777)
    for outcome in shared().run(f"{CASES}:saved", 2, {"run_dir": run_dir}):
        assert outcome.code == 1 and "CheckpointError" in outcome.output
        assert "may be written by everybody" in outcome.output
    newest(Path(run_dir)).chmod(0o755)
    assert all(outcome.value for outcome in shared().run(f"{CASES}:saved", 2, {"run_dir": run_dir}))


def test_links_are_never_followed_whoever_is_trusted(run: Path, tmp_path: Path) -> None:
    TRUST.everyone = True
    directory = newest(run)
    file = directory / "rank00001.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    for hashed in (None, set[str]()):
        with pytest.raises(BadCheckpoint, match="not a plain file"):
            verify(directory, hashed)
    assert load_backbone(run).step == 5, "the one before it"
    file.unlink()
    (tmp_path / "elsewhere").rename(file)
    directory.rename(tmp_path / directory.name)
    directory.symlink_to(tmp_path / directory.name)
    with pytest.raises(BadCheckpoint, match="is a link"):
        verify(directory)


def test_a_whole_checkpoint_of_a_stranger_holds_tensors_or_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for number, (name, content) in enumerate(payloads.disguises(canary).items()):
        with pytest.raises(CheckpointError, match="not written by us"):
            read_newest(payloads.run(tmp_path / str(number), content))
        assert not canary.exists(), name


@pytest.mark.parametrize(
    ("key", "shapes"),
    [("master|0|w", "{}"), ("master|0|w", '{"w": [4611686018427387904]}'), ("master|x|w", '{"w": [1]}'),
     ("w", '{"w": [1]}'),
     ("master|0|w", '{"w": [1], "w": [1]}'), ("master|0|w", '{"w": "x"}'), ("master|0|w", "[1]"), ("master|0|w", "")],
)  # fmt: skip
def test_a_checkpoint_that_claims_what_it_does_not_hold_is_refused_before_it_is_allocated(
    tmp_path: Path, key: str, shapes: str
) -> None:
    header = {"__metadata__": {"shapes": shapes, "updates": "1"},
              key: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}  # fmt: skip
    content = payloads.safetensors(tmp_path / "file", header, data=bytes(4)).read_bytes()
    run = payloads.run(tmp_path / "run", content)
    if shapes == "{}":  # nothing is claimed, and nothing read
        assert read_newest(run).state == {}
        return
    with pytest.raises(CheckpointError):
        read_newest(run)


def test_the_manifest_is_compared_before_any_byte_of_weights_is_parsed(tmp_path: Path) -> None:
    run = payloads.run(tmp_path / "run", b"no tensors at all")
    (newest(run) / "rank00000.safetensors").write_bytes(b"other bytes, same")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* verifies .*sha256"):
        read_newest(run)

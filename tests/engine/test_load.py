from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.backbones.vit import ViTConfig
from pretrain.config import write_config
from pretrain.engine.commit import directory_name
from pretrain.engine.load import load_backbone, untrained_backbone
from pretrain.engine.stored import rank_file
from pretrain.errors import CheckpointError, ConfigError
from pretrain.model import build_model
from tests.engine.load_cases import CONFIG, save


def _same(backbone: torch.nn.Module, weights: dict[str, Tensor], plus: float = 0.0) -> bool:
    own = backbone.state_dict()
    trained = {name for name, _ in backbone.named_parameters()}
    return all(torch.equal(own[n], weights[f"backbone.{n}"] + (plus if n in trained else 0)) for n in own)


def test_the_newest_checkpoint_is_loaded_whole_and_frozen(tmp_path: Path) -> None:
    save(tmp_path / "first", 9)
    weights = save(tmp_path / "first", 10, attempt=2)
    loaded = load_backbone(tmp_path / "first")
    assert (loaded.step, loaded.which, loaded.config) == (10, "model", CONFIG)
    assert loaded.fingerprint == "f00d"
    assert _same(loaded.backbone, weights)
    assert not loaded.backbone.training
    assert not any(p.requires_grad for p in loaded.backbone.parameters())
    assert (loaded.backbone.grid.height, loaded.backbone.grid.width) == (2, 3)


def test_averaged_weights_are_taken_where_the_run_keeps_them(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 4, ema=True)
    average, plain = load_backbone(tmp_path / "first"), load_backbone(tmp_path / "first", "model")
    assert (average.which, plain.which) == ("ema", "model")
    assert _same(average.backbone, weights, 0.5)
    assert _same(plain.backbone, weights)


def test_a_step_can_be_asked_for_and_one_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 5)
    save(tmp_path / "first", 20)
    loaded = load_backbone(tmp_path / "first", step=5)
    assert loaded.step == 5
    assert _same(loaded.backbone, weights)
    with pytest.raises(ConfigError, match="no checkpoint of step 6; it has those of steps 5, 20"):
        load_backbone(tmp_path / "first", step=6)


def test_a_flipped_bit_is_met_before_parsing_and_the_checkpoint_before_it_taken(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 5)
    save(tmp_path / "first", 6)
    path = rank_file(tmp_path / "first" / "ckpt" / directory_name(6, 1), 1)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    loaded = load_backbone(tmp_path / "first")
    assert loaded.step == 5
    assert _same(loaded.backbone, weights)
    assert path.exists(), "a reader sets nothing aside"
    with pytest.raises(CheckpointError, match="sha256"):
        load_backbone(tmp_path / "first", step=6)


def test_half_written_and_set_aside_directories_are_no_candidates(tmp_path: Path) -> None:
    save(tmp_path / "first", 5)
    for name in (".tmp-0000000009-a000001", ".bad-0000000008-a000001", "0000000007"):
        (tmp_path / "first" / "ckpt" / name).mkdir()
    assert load_backbone(tmp_path / "first").step == 5


def test_a_run_that_is_not_there_or_has_saved_nothing_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the directory of a run"):
        load_backbone(tmp_path / "none")
    tmp_path.joinpath("new").mkdir()
    write_config(CONFIG, tmp_path / "new" / "config.json")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_backbone(tmp_path / "new")
    with pytest.raises(ConfigError, match="use ema"):
        load_backbone(tmp_path / "new", "best")


def test_an_encoder_of_another_shape_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "first", 5)
    deeper = replace(CONFIG, backbone=ViTConfig("tiny", width=32, depth=3, heads=2))
    write_config(deeper, tmp_path / "first" / "config.json")
    with pytest.raises(CheckpointError, match="does not hold the encoder"):
        load_backbone(tmp_path / "first")


def test_the_untrained_encoder_is_that_of_step_zero_and_draws_nothing_of_torchs() -> None:
    state = torch.random.get_rng_state()
    one, two = untrained_backbone(CONFIG), build_model(CONFIG).backbone
    torch.random.set_rng_state(state)
    again = untrained_backbone(CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state)
    for other in (two, again):
        state_dict = other.state_dict()
        assert all(torch.equal(tensor, state_dict[name]) for name, tensor in one.state_dict().items())


def test_loading_needs_no_deepspeed() -> None:
    modules = "pretrain.engine.load, pretrain.evaluation.evaluate, pretrain.export.export"
    code = f"import sys, {modules}; print('deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""A run directory with checkpoints in the real format, written without training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config, write_config
from pretrain.data.settings import DataConfig
from pretrain.engine import fsops
from pretrain.engine.commit import COMMIT, Commit, directory_name
from pretrain.engine.stored import EMA, FIXED, MASTER, Facts, Piece, rank_file, write_pieces
from pretrain.model import build_model
from pretrain.objectives.pixel import PixelMAEConfig

CONFIG = Config(
    name="first",
    data=DataConfig(train="shards/*.tar", image_size=(32, 48)),
    backbone=ViTConfig("tiny", patch_size=16, width=32, depth=2, heads=2),
    objective=PixelMAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2),
    mask=Uniform(FixedRatio(0.5)),
    steps=10,
)


def save(
    run_dir: Path, step: int, *, attempt: int = 1, ema: bool = False, config: Config = CONFIG
) -> dict[str, Tensor]:
    """A checkpoint as two ranks write it, and its weights: step + their place, averages half more."""
    run_dir.mkdir(exist_ok=True)
    write_config(config, run_dir / "config.json")
    directory = run_dir / "ckpt" / directory_name(step, attempt)
    directory.mkdir(parents=True)
    model = build_model(config)
    trained = {name for name, _ in model.named_parameters()}
    pieces: tuple[list[Piece], list[Piece]] = [], []
    weights = {}
    for name, tensor in model.state_dict().items():
        flat = tensor.reshape(-1).float().clone()
        if name in trained:
            flat = step + torch.arange(flat.numel(), dtype=torch.float32) / flat.numel()
        weights[name] = flat.view(tensor.shape)
        cut = flat.numel() // 3
        for rank, (start, part) in enumerate(((0, flat[:cut]), (cut, flat[cut:]))):
            pieces[rank].append(Piece(MASTER if name in trained else FIXED, name, start, part))
            if ema and name in trained:
                pieces[rank].append(Piece(EMA, name, start, part + 0.5))
    facts = Facts({name: list(tensor.shape) for name, tensor in weights.items()}, updates=step)
    sums = {}
    for rank in range(2):
        path = rank_file(directory, rank)
        sums[path.name] = write_pieces(path, pieces[rank], facts)
    fsops.write(directory / COMMIT, [Commit(step, attempt, "partitioned", {"fingerprint": "f00d"}, {}, sums).encode()])
    return weights

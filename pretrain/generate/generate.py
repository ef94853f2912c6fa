"""Images from a run of MaskGIT, MAGE or MAR, batch by batch, with what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masking.recap import decoding_counts
from pretrain.data.settings import DataConfig
from pretrain.engine.load import Loaded, load_backbone
from pretrain.errors import ConfigError
from pretrain.generate.joint import Joint
from pretrain.generate.sampler import Given, sample
from pretrain.generate.sampling import Sampling
from pretrain.generate.stopping import Rule, sample_until_settled
from pretrain.objectives.token_model import TokenModel
from pretrain.tokenizers.token_vit import TokenViT


@dataclass(frozen=True)
class Generator:
    """A trained model that can be asked for images."""

    backbone: TokenViT
    objective: TokenModel
    loaded: Loaded
    joint: Joint | None = None  # what takes local steps in ReCAP's place
    rule: Rule | None = None  # what is decoded before its time

    @classmethod
    def of(cls, run_dir: Path, weights: str = "ema", step: int | None = None, device: str = "cpu") -> Generator:
        """That of a run's checkpoint. Raises ConfigError where the run trains no token model."""
        loaded = load_backbone(run_dir, weights, step, with_objective=True)
        backbone, objective = loaded.backbone, loaded.objective
        if not isinstance(backbone, TokenViT) or not isinstance(objective, TokenModel):
            name = type(loaded.config.objective).__name__.removesuffix("Config")
            raise ConfigError(
                f"{run_dir} trained {name}, which generates no images; give a run of MaskGIT, MAGE or MAR"
            )
        return cls(backbone.to(device), objective.to(device), loaded)

    @property
    def num_positions(self) -> int:
        """N."""
        return self.backbone.grid.num_patches

    @property
    def pixels(self) -> DataConfig:
        """How images that are to be compared with generated ones are cut, tokens or not in the run's own data."""
        data, paints, grid = self.loaded.config.data, self.backbone.tokenizer.paints, self.backbone.grid
        size = (grid.height * paints.patch_size, grid.width * paints.patch_size)
        return replace(data, image_size=size, in_chans=paints.in_chans)

    def images(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, ...) as images (B, C, H, W) uint8."""
        return self.backbone.tokenizer.images(tokens, self.backbone.grid).mul(255).round().to(torch.uint8)


@dataclass(frozen=True)
class Generated:
    """What was made, on the CPU."""

    images: Tensor  # (M, C, H, W) uint8
    tokens: Tensor  # (M, N) int64 or (M, N, num_values) float32
    labels: Tensor  # (M,) int64, -1 where no class was told
    seconds: float  # of all passes and draws, tokens to images not included
    facts: dict[str, Any]  # settings and counts, as JSON values


def generate(
    generator: Generator,
    sampling: Sampling,
    num: int,
    *,
    labels: Tensor | None = None,
    given: Given | None = None,
    batch_size: int = 64,
    first: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Generated:
    """Images number first to first + num - 1, told of labels (num,) int64 where there are some, and completed from
    given (of num images) where that is there. on_step is told of each step of each batch. Raises ConfigError."""
    if num < 1 or batch_size < 1:
        raise ConfigError(f"{num} images in batches of {batch_size}; both must be 1 or more")
    device = generator.backbone.pos_embed.device
    tokens, images, passes, seconds = [], [], [], 0.0
    for begin in range(0, num, batch_size):
        rows = slice(begin, min(begin + batch_size, num))
        part = None if given is None else Given(given.tokens[rows], given.known[rows])
        told = None if labels is None else labels[rows]
        numbers = torch.arange(first + rows.start, first + rows.stop)
        began = _now(device)
        model = (generator.backbone, generator.objective, sampling)
        if generator.rule is not None:
            found, taken = sample_until_settled(*model, generator.rule, numbers, told, part, on_step)
            passes.append(taken)
        else:
            found = sample(*model, numbers, told, part, on_step, generator.joint)
        seconds += _now(device) - began
        images.append(generator.images(found).cpu())
        tokens.append(found.cpu())
    unknown = generator.num_positions if given is None else int((~given.known[0]).sum())
    counts = _taken(torch.cat(passes)) if passes else _passes(generator, sampling, unknown)
    facts = {**counts, "images": num, "batch_size": batch_size, "first": first,
             "seconds": round(seconds, 4), "seconds_per_image": round(seconds / num, 6), "device": str(device),
             "settings": asdict(sampling)}  # fmt: skip
    kept = torch.full((num,), -1) if labels is None else labels
    return Generated(torch.cat(images), torch.cat(tokens), kept, seconds, facts)


def _taken(passes: Tensor) -> dict[str, Any]:
    """The full passes (M,) that images took, each as many as it needed."""
    mean = round(float(passes.double().mean()), 3)
    found = {"full_passes": mean, "local_passes": 0, "cost_in_full_passes": mean}
    return {**found, "fewest_passes": int(passes.min()), "most_passes": int(passes.max())}


def _passes(generator: Generator, sampling: Sampling, num_unknown: int) -> dict[str, Any]:
    """How many passes an image takes, and what they cost in full ones by ReCAP's formula, or by the blocks of a joint
    sampler."""
    counts = decoding_counts(num_unknown, sampling.plan.steps, sampling.decay)
    full = len(sampling.plan.groups(counts))
    if sampling.refresh:
        return {"full_passes": len(counts), "local_passes": 0, "cost_in_full_passes": float(len(counts))}
    if generator.joint is not None:
        share = len(generator.joint.backbone.blocks) / len(generator.backbone.blocks)
        cost = full + (len(counts) - full) * share
        return {"full_passes": full, "local_passes": len(counts) - full, "cost_in_full_passes": round(cost, 3)}
    num_given = generator.num_positions - num_unknown
    cost = sampling.plan.cost(
        counts, generator.backbone.num_prefix, num_given, keeps_extra=sampling.cache_buffer
    )
    return {
        "full_passes": full,
        "local_passes": len(counts) - full,
        "cost_in_full_passes": round(cost, 3),
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

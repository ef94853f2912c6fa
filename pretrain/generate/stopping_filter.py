"""A small network that says which positions of an image are settled, learned from the model it serves (Bao et al.,
"Learning to Parallel", 2025, for images).

The paper's filter sees the confidences of a block of text; this one those of the three by three patches around a
position, whether each is known, and how much of the image is. The paper's answer is whether the likeliest code is that
of the slow run; here it is whether what is said of a position changes by less than `delta` when others become known:
an image with a random share of its tokens is looked at twice, the second time with a random share of the others.
Letters: B images, N positions, K codes, F inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from masking.draw import named_noise
from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.generate.stopping import Rule
from pretrain.objectives.maskgit import hidden_by
from pretrain.objectives.token_model import Canvas

if TYPE_CHECKING:
    from pretrain.generate.generate import Generator

FILE = "stopping.safetensors"
_NUM_INPUTS = 19  # nine confidences, nine times whether known, and the known share
_WIDTH = 32
_STEPS, _BATCH, _RATE = 3000, 512, 3e-3
_HELD_OUT = 0.1  # of the images


class Filter(nn.Module):
    """Three linear maps, 1,729 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(_NUM_INPUTS, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (..., F) to logits (...) of being settled."""
        found: Tensor = self.layers(inputs)
        return found[..., 0]


@dataclass(frozen=True)
class Learned(Rule):
    """The filter above a threshold."""

    filter: Filter
    grid: Grid
    least: float  # probability of being settled above which a position is; 1: none is

    def settled(self, said: Tensor, canvas: Canvas, ids: Tensor, rows: Tensor) -> Tensor:
        """What the filter finds settled."""
        return self.filter(inputs_of(said, canvas.known, self.grid)).sigmoid() > self.least


def inputs_of(said: Tensor, known: Tensor, grid: Grid) -> Tensor:
    """(B, N, F) float32 from logits said (B, N, K) and known (B, N) bool: zeros beyond the edges of the grid, where no
    confidence can be."""
    sure = torch.where(known, 1.0, said.float().softmax(-1).amax(-1))
    planes = rearrange([sure, known.float()], "two b (h w) -> b two h w", h=grid.height)
    around = rearrange(F.unfold(planes, 3, padding=1), "b f n -> b n f")
    share = known.float().mean(1)[:, None, None].expand(-1, known.shape[1], 1)
    return torch.cat([around, share], -1)


def learn(
    generator: Generator,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    delta: float = 0.1,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Filter, dict[str, float]]:
    """A filter for generator's model from batches of images (B, C, H, W) uint8 and labels (B,) int64; and what it is
    worth on a tenth of them, held out: which share of positions is settled, how often it is right, which share it calls
    settled with a probability above 0.9, and how often rightly. delta is in nats. Raises ConfigError."""
    if delta <= 0:
        raise ConfigError(f"delta={delta}; a change of what is said, in nats, is above 0, for example 0.1")
    if generator.backbone.num_codes is None:
        raise ConfigError("a stopping rule looks at probabilities of codes, and MAR's values have none")
    parts, first = [], 0
    for images, labels in batches:
        inputs, change = look_twice(generator, images, labels, torch.arange(first, first + len(images)), seed)
        parts.append((inputs, (change < delta).float()))
        first += len(images)
        if on_progress is not None:
            on_progress(len(images))
    split = max(1, round(len(parts) * _HELD_OUT))
    if len(parts) < 2:
        raise ConfigError(f"{first} images are one batch, and some must be held out; give more of them")
    inputs, answers = (torch.cat(side) for side in zip(*parts[split:]))
    made = _fit(inputs, answers, seed)
    inputs, answers = (torch.cat(side) for side in zip(*parts[:split]))
    with torch.no_grad():
        chance = made(inputs).sigmoid()
    sure = chance > 0.9
    facts = {
        "settled": float(answers.mean()),
        "right": float(((chance > 0.5) == (answers > 0.5)).float().mean()),
        "called": float(sure.float().mean()),
        "called_rightly": float(answers[sure].mean()) if bool(sure.any()) else 0.0,
    }
    return made, facts


@torch.no_grad()
def look_twice(
    generator: Generator, images: Tensor, labels: Tensor, numbers: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """What a filter sees of positions that stay hidden, (n, F) float32, and the divergence (n,), nats, from what the
    model says of them with more of the image known to what it says first; both on the CPU. Images (B, C, H, W) uint8,
    labels (B,), and numbers (B,), which with seed say what is known."""
    backbone, objective, device = generator.backbone, generator.objective, generator.backbone.pos_embed.device
    ids = backbone.tokenizer.tokens(images.to(device))
    noise = named_noise(numbers, seed, "stopping", device=device)
    order, shares = noise.uniform(ids.shape[1], "order"), noise.uniform(2, "shares")
    hidden = hidden_by(shares[:, 0], order, "cosine")
    revealed = hidden & (order.argsort(1).argsort(1) < (shares[:, 1] * hidden.sum(1)).long()[:, None])
    told = None if backbone.classes is None else labels.to(device)
    prefix = backbone.prefix_ids(told, len(ids), device)

    def look(known: Tensor) -> Tensor:
        return objective.look(backbone, Canvas(torch.where(known, ids, backbone.mask_id), known, prefix), None)

    left = hidden & ~revealed
    before, after = look(~hidden), look(~left)
    was, now = before.log_softmax(-1), after.log_softmax(-1)
    change = (now.exp() * (now - was)).sum(-1)
    inputs = inputs_of(before, ~hidden, backbone.grid)
    return inputs[left].cpu(), change[left].cpu()


def _fit(inputs: Tensor, answers: Tensor, seed: int) -> Filter:
    """Cross-entropy, by AdamW at a falling rate."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Filter()
    optimizer = torch.optim.AdamW(made.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(inputs), (_BATCH,), generator=rng)
        loss = F.binary_cross_entropy_with_logits(made(inputs[rows]), answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return made.eval().requires_grad_(False)


def save(made: Filter, generator: Generator, facts: dict[str, float], run_dir: Path) -> Path:
    """Writes the filter beside the run it was learned from, with the checkpoint's step and weights; its path."""
    path, fresh = run_dir / FILE, run_dir / f".{FILE}.new"
    metadata = {name: f"{value:.6g}" for name, value in facts.items()} | _stamp(generator)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, fresh, metadata)
    os.replace(fresh, path)
    return path


def load(generator: Generator, run_dir: Path, least: float) -> Learned:
    """The rule of the filter beside the run. Raises ConfigError where there is none, or one of other weights."""
    if not 0 < least <= 1:
        raise ConfigError(f"--stop={least}; a probability above 0, up to 1, where nothing is settled")
    path, made = run_dir / FILE, Filter()
    if not path.exists():
        raise ConfigError(f"{path} is not there; learn it first: lacuna generate {run_dir} --learn-stopping SHARDS")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            made.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ConfigError(f"{path} holds no stopping rule ({' '.join(str(error).split())[:200]})") from error
    stamp = _stamp(generator)
    if any(metadata.get(name) != value for name, value in stamp.items()):
        was = {name: metadata.get(name) for name in stamp}
        raise ConfigError(f"{path} was learned from {was}, and this is {stamp}; learn it anew with --learn-stopping")
    device = generator.backbone.pos_embed.device
    return Learned(made.to(device).eval().requires_grad_(False), generator.backbone.grid, least)


def _stamp(generator: Generator) -> dict[str, str]:
    return {"step": str(generator.loaded.step), "weights": generator.loaded.which}

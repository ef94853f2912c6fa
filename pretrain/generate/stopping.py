"""Steps that an image needs, instead of steps that it is given: positions whose answer is settled are decoded at once
(Bao et al., "Learning to Parallel: Accelerating Diffusion Large Language Models via Adaptive Parallel Decoding", 2025).

Every step of the schedule leaves at most so many positions hidden. An image on which a rule finds more of them settled
is ahead of it, and the steps that it has overtaken are not taken: they cost nothing. So images differ in the number of
full passes, and where the rule finds nothing this is the ordinary sampler. For codes, and without local steps.

The paper asks whether an answer is already that of the slow run. What is drawn at random has no such answer; here a
rule may be learned that asks whether what is said of a position still changes (stopping_filter.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from masking.draw import named_noise
from masking.recap import decoding_counts
from pretrain.errors import ConfigError
from pretrain.generate.sampler import Decoder, Given, blank
from pretrain.generate.sampling import Sampling
from pretrain.objectives.mar import MAR
from pretrain.objectives.token_model import Canvas, TokenModel
from pretrain.tokenizers.token_vit import TokenViT


class Rule:
    """Says which positions are settled."""

    def settled(self, said: Tensor, canvas: Canvas, ids: Tensor, rows: Tensor) -> Tensor:
        """(B, N) bool from logits (B, N, K) on canvas, and ids (B, N) as they would be decoded; rows (B,) are the
        images among those that were asked for. Known positions may be either."""
        raise NotImplementedError

    def correct(self, ids: Tensor, rows: Tensor) -> Tensor:
        """ids (B, N) as they are decoded in the end."""
        return ids


class Nothing(Rule):
    """The ordinary sampler."""

    def settled(self, said: Tensor, canvas: Canvas, ids: Tensor, rows: Tensor) -> Tensor:
        """No position."""
        return torch.zeros_like(canvas.known)


@dataclass(frozen=True)
class Confident(Rule):
    """One threshold for all positions: what a learned rule must be better than."""

    least: float  # probability of the likeliest code above which a position is settled

    def settled(self, said: Tensor, canvas: Canvas, ids: Tensor, rows: Tensor) -> Tensor:
        """Positions of which the model is sure."""
        return said.softmax(-1).amax(-1) > self.least


@dataclass(frozen=True)
class Oracle(Rule):
    """Knows how a slow run ended: what no rule can beat."""

    final: Tensor  # (M, N) int64, of all images that are asked for

    def settled(self, said: Tensor, canvas: Canvas, ids: Tensor, rows: Tensor) -> Tensor:
        """Positions whose code is already the last one."""
        return ids == self.final[rows]

    def correct(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The slow run's."""
        return self.final[rows]


@torch.no_grad()
def sample_until_settled(
    backbone: TokenViT,
    objective: TokenModel,
    sampling: Sampling,
    rule: Rule,
    images: Tensor,
    labels: Tensor | None = None,
    given: Given | None = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `pretrain.generate.sampler.sample`: tokens (B, N) int64, and the full passes each image took, (B,) int64.
    Raises ConfigError."""
    device = backbone.pos_embed.device
    canvas = blank(backbone, images, labels, given, device)
    num_unknown = int((~canvas.known[0]).sum())
    check(objective, sampling)
    sampling.check(backbone, objective, num_unknown)
    counts = decoding_counts(num_unknown, sampling.plan.steps, sampling.decay)
    passes, num_left = torch.zeros(len(images), dtype=torch.int64), num_unknown
    for step, count in enumerate(counts):
        num_left -= count
        hidden = (~canvas.known).sum(1)
        rows = (hidden > num_left).nonzero()[:, 0]
        if len(rows):
            part = Canvas(canvas.tokens[rows], canvas.known[rows], canvas.prefix[rows])
            noise = named_noise(images[rows.cpu()], sampling.seed, "generate", device=device)
            decoder = Decoder(backbone, objective, sampling, noise)
            _step(decoder, part, rule, rows, hidden[rows] - num_left, step, (step + 1) / len(counts))
            canvas.tokens[rows], canvas.known[rows] = part.tokens, part.known
            passes[rows.cpu()] += 1
        if on_step is not None:
            on_step(step)
    return canvas.tokens, passes


def check(objective: TokenModel, sampling: Sampling) -> None:
    """Raises ConfigError where steps cannot be left out."""
    if isinstance(objective, MAR):
        raise ConfigError("a stopping rule looks at probabilities, and MAR's values have none; leave out --stop")
    if sampling.plan.local:
        raise ConfigError(
            "a stopping rule decodes what is settled beside what is scheduled, and ReCAP's and a joint sampler's local "
            "steps go on with a fixed set; use --stop without --recap"
        )


def _step(
    decoder: Decoder, canvas: Canvas, rule: Rule, rows: Tensor, least: Tensor, step: int, coldness: float
) -> None:
    """Decodes at least so many positions (B,) of canvas, in place: those that are due, and those that are settled."""
    said = decoder.objective.look(decoder.backbone, decoder.doubled(canvas), None)
    strength, num_patches = decoder.guidance(step, 0, canvas), canvas.known.shape[1]
    ids, order = decoder.choose(said, canvas.known, num_patches, step, coldness, strength)
    if ids is None or decoder.sampling.redraw:
        every = torch.arange(num_patches, device=rows.device).expand(len(rows), -1)
        ids = decoder.drawing.draw(said, every, step, strength, local=False)
    due = torch.zeros_like(canvas.known).scatter(1, order, _first(least, num_patches))
    settled = rule.settled(said[: len(rows)], canvas, ids, rows)
    chosen = (due | settled) & ~canvas.known
    canvas.tokens = torch.where(chosen, rule.correct(ids, rows).to(canvas.tokens.dtype), canvas.tokens)
    canvas.known = canvas.known | chosen


def _first(counts: Tensor, num: int) -> Tensor:
    """(B, num) bool: the first counts (B,) of each row."""
    return torch.arange(num, device=counts.device)[None] < counts[:, None]

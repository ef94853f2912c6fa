"""One sampler for MaskGIT, MAGE and MAR: full steps choose positions, local ones (ReCAP, or a trained joint sampler) go
on with what they left.

A group is a full pass over everything, which chooses all positions that the group decodes and draws the first of them,
then local passes over these positions alone. Without local steps a group is one step, and this is the ordinary sampler.
Letters: B images, N positions, n of them decoded by a group, a by a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from masking.draw import Noise, named_noise
from masking.recap import decoding_counts, halton_order
from pretrain.errors import ConfigError
from pretrain.generate.drawing import Codes, Drawing, Values
from pretrain.generate.joint import Joint
from pretrain.generate.sampling import Sampling
from pretrain.objectives.mar import MAR
from pretrain.objectives.maskgit import MaskGIT
from pretrain.objectives.token_model import Canvas, Memory, TokenModel
from pretrain.tokenizers.token_vit import TokenViT


@dataclass(frozen=True)
class Given:
    """Tokens that are known from the start and never change: for completing images."""

    tokens: Tensor  # (B, N) int64 or (B, N, num_values) float32; what is not known does not matter
    known: Tensor  # (B, N) bool, as many in every image


@torch.no_grad()
def sample(
    backbone: TokenViT,
    objective: TokenModel,
    sampling: Sampling,
    images: Tensor,
    labels: Tensor | None = None,
    given: Given | None = None,
    on_step: Callable[[int], None] | None = None,
    joint: Joint | None = None,
) -> Tensor:
    """Tokens of images numbered images (B,) int64 on the CPU, (B, N) int64 or (B, N, num_values) float32: each a
    function of the weights, the settings, its number and its label, whatever is generated beside it.

    labels (B,) int64 tell classes, -1 none. on_step is told the number of each step that is done. joint, where there is
    one, takes local steps in ReCAP's place. Raises ConfigError."""
    device = backbone.pos_embed.device
    canvas = blank(backbone, images, labels, given, device)
    num_unknown = int((~canvas.known[0]).sum())
    sampling.check(backbone, objective, num_unknown)
    if joint is not None:
        if not sampling.plan.local or sampling.refresh:
            raise ConfigError("a joint sampler is for local steps, and there are none; set local=1 or more")
        joint.check(backbone, objective)
    noise = named_noise(images, sampling.seed, "generate", device=device)
    counts = decoding_counts(num_unknown, sampling.plan.steps, sampling.decay)
    groups = sampling.plan.groups(counts)
    decoder = Decoder(backbone, objective, sampling, noise, joint)
    step = 0
    for number, group in enumerate(groups):
        coldness = (number + 1) / len(groups)
        for _ in decoder.decode(canvas, group, step, coldness):
            if on_step is not None:
                on_step(step)
            step += 1
    return canvas.tokens


class Decoder:
    """Groups of steps on one canvas."""

    def __init__(
        self, backbone: TokenViT, objective: TokenModel, sampling: Sampling, noise: Noise, joint: Joint | None = None
    ) -> None:
        self.joint, self.features = joint, torch.empty(0)  # what the last full pass left for it
        self.backbone, self.objective, self.sampling, self.noise = backbone, objective, sampling, noise
        self.codes = None if isinstance(objective, MAR) else Codes(sampling, noise)
        self.drawing: Drawing
        if isinstance(objective, MAR):
            self.drawing = Values(sampling, noise, objective.head, backbone.num_values)
        else:
            self.drawing = Codes(sampling, noise)
        self.order = sampling.order_for(objective)
        self.rank = None if self.order == "confidence" else self._fixed_order()

    def decode(self, canvas: Canvas, group: tuple[int, ...], step: int, coldness: float) -> Iterator[None]:
        """Decodes group's positions on canvas, in place, and yields after each of its steps."""
        num_targets, num_unknown = sum(group), int((~canvas.known[0]).sum())
        keeps = len(group) > 1 and not self.sampling.refresh and self.joint is None
        memory = Memory(keeps_prefix=self.sampling.cache_buffer) if keeps else None
        said = self._look(self.doubled(canvas), memory, num_targets)
        first_guidance = self.guidance(step, num_unknown - group[0], canvas)
        ids, targets = self.choose(said, canvas.known, num_targets, step, coldness, first_guidance)
        said = _rows(said, self._paired(targets))
        begin = 0
        for offset, count in enumerate(group):
            if offset:
                said = self._again(canvas, targets, begin, memory)
            chunk = targets[:, begin : begin + count]
            guidance = self.guidance(step + offset, num_unknown - begin - count, canvas)
            if offset == 0 and ids is not None and not self.sampling.redraw:
                tokens = ids.gather(1, chunk)
            else:
                part = said[:, begin : begin + count]
                tokens = self.drawing.draw(part, chunk, step + offset, guidance, local=offset > 0)
            _fill(canvas, chunk, tokens)
            begin += count
            yield

    def _look(self, asked: Canvas, memory: Memory | None, num_targets: int) -> Tensor:
        """A full pass."""
        if self.joint is None:
            return self.objective.look(self.backbone, asked, memory, num_targets)
        assert isinstance(self.objective, MaskGIT)  # Joint.check
        self.features = self.objective.features(self.backbone, asked.tokens, asked.prefix)
        return self.objective.logits(self.backbone, self.features)

    def _again(self, canvas: Canvas, targets: Tensor, num_filled: int, memory: Memory | None) -> Tensor:
        """What is said of the targets once the first of them are filled: by a local pass, the joint sampler, or a full
        pass."""
        asked, paired = self.doubled(canvas), self._paired(targets)
        if self.joint is not None:
            return self.joint.look_again(self.features, asked, paired, num_filled)
        if memory is None:
            return _rows(self.objective.look(self.backbone, asked, None), paired)
        return self.objective.look_again(self.backbone, asked, memory, paired, num_filled)

    def choose(
        self, said: Tensor, known: Tensor, num_targets: int, step: int, coldness: float, guidance: float
    ) -> tuple[Tensor | None, Tensor]:
        """Ids drawn for all positions where they decide, and the positions (B, n) that the group decodes, first to
        last."""
        if self.rank is not None:
            score, ids = -self.rank.double(), None
        else:
            assert self.codes is not None
            ids, score = self.codes.score(said, step, guidance)
            every = torch.arange(known.shape[1], device=known.device)[None]
            numbers = self.noise.uniform_at(every, f"choice-{step}").double() + 2.0**-25
            score = score - self.sampling.choice_temperature * (1 - coldness) * (-numbers.log()).log()
        score = score.masked_fill(known, -torch.inf)
        return ids, score.argsort(dim=1, descending=True, stable=True)[:, :num_targets]

    def _fixed_order(self) -> Tensor:
        """The rank of each position in an order that no answer changes, (B, N)."""
        grid, batch = self.backbone.grid, len(self.noise.rows)
        if self.order == "random":
            return self.noise.uniform(grid.num_patches, "order")
        order = torch.tensor(halton_order(grid.height, grid.width), device=self.noise.rows.device)
        return order.argsort().expand(batch, -1)

    def guidance(self, step: int, num_left: int, canvas: Canvas) -> float:
        """How strong guidance is: rising with the steps for codes, with the share of known tokens for MAR."""
        if isinstance(self.objective, MAR):
            return self.sampling.guidance * (1 - num_left / canvas.known.shape[1])
        return self.sampling.guidance * (step + 1) / self.sampling.plan.steps

    def doubled(self, canvas: Canvas) -> Canvas:
        """canvas, and behind it the same of no class where guidance asks for it."""
        if not self.sampling.guidance:
            return canvas
        untold = self.backbone.prefix_ids(None, len(canvas.prefix), canvas.prefix.device)
        return Canvas(
            torch.cat([canvas.tokens] * 2), torch.cat([canvas.known] * 2), torch.cat([canvas.prefix, untold])
        )

    def _paired(self, targets: Tensor) -> Tensor:
        return torch.cat([targets] * 2) if self.sampling.guidance else targets


def blank(
    backbone: TokenViT, images: Tensor, labels: Tensor | None, given: Given | None, device: torch.device
) -> Canvas:
    """The canvas to begin with: given tokens, and nothing else known."""
    shape, batch = (len(images), backbone.grid.num_patches), len(images)
    prefix = backbone.prefix_ids(None if labels is None else labels.to(device), batch, device)
    known = torch.zeros(shape, dtype=torch.bool, device=device)
    if backbone.num_codes is None:
        tokens = torch.zeros(*shape, backbone.num_values, device=device)
    else:
        tokens = torch.full(shape, backbone.mask_id, device=device)
    if given is not None:
        known = given.known.to(device)
        if bool((known.sum(1) != known[0].sum()).any()):
            raise ValueError("every image must have as many known tokens as the others; complete them in batches")
        chosen = known if tokens.ndim == 2 else known[..., None]
        tokens = torch.where(chosen, given.tokens.to(device), tokens)
    return Canvas(tokens, known.clone(), prefix)


def _fill(canvas: Canvas, positions: Tensor, tokens: Tensor) -> None:
    """Puts tokens (B, a, ...) at positions (B, a) of canvas."""
    at = positions if tokens.ndim == 2 else positions[..., None].expand_as(tokens)
    canvas.tokens.scatter_(1, at, tokens.to(canvas.tokens.dtype))
    canvas.known.scatter_(1, positions, True)


def _rows(said: Tensor, positions: Tensor) -> Tensor:
    """Rows positions (B, n) of said (B, N, D): (B, n, D)."""
    return said.gather(1, positions[..., None].expand(-1, -1, said.shape[2]))

"""Vector quantisation as in MaskGIT's tokenizer (Chang et al., "MaskGIT: Masked Generative Image Transformer"): a
latent becomes the nearest of some learned codes, and its gradient passes straight through.

The codes are learned by gradient: the codebook follows the latents, the latents commit to it, and an entropy term wants
each choice sure and all choices used; it looks at the tokens of one image where MaskGIT's looks at those of a batch,
since no image may be part of another's loss. Codes that are averages of their latents are in vq_average.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pretrain.ranges import AT_LEAST_0, AT_LEAST_1, POSITIVE, Range, check_ranges
from pretrain.tokenizers.quantiser import Quantised, Quantiser

_RANGES: dict[str, Range] = {
    "num_codes": ("2 or more", lambda v: v >= 2),
    "code_dim": AT_LEAST_1,
    "commitment": AT_LEAST_0,
    "entropy": AT_LEAST_0,
    "temperature": POSITIVE,
}


@dataclass(frozen=True)
class VQConfig:
    """A learned codebook."""

    num_codes: int = 1024  # codes to choose among
    code_dim: int = 64  # channels of a code; 256 in MaskGIT
    commitment: float = 0.25  # weight of the latents' distance to their codes
    entropy: float = 0.1  # weight of the entropy of each choice, less that of an image's choices together
    temperature: float = 0.01  # of the soft choices that the entropy is taken of

    sampled: ClassVar[bool] = False

    @property
    def num_inputs(self) -> int:
        """Latents are as wide as codes."""
        return self.code_dim

    @property
    def num_values(self) -> int:
        """The same."""
        return self.code_dim

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "backbone.quantiser.")

    def build(self) -> VQ:
        """The quantiser with a fresh codebook."""
        return VQ(self)

    def flops(self, tokens: int) -> float:
        """FLOPs of comparing so many latents with all codes."""
        return 2.0 * tokens * self.num_codes * self.code_dim


class VQ(Quantiser):
    """Chooses in float32, whatever the number format of the latents."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(fresh_codes(config.num_codes, config.code_dim))

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantised:
        """Latents (B, N, code_dim) as their nearest codes; noise is not used."""
        latents, codebook = latents.float(), self.codebook.float()
        distances = code_distances(latents, codebook)
        ids = distances.detach().argmin(-1)
        codes = codebook[ids]
        losses = {"codebook": (codes - latents.detach()).square().mean((1, 2))}
        if self.config.commitment:
            losses["commitment"] = self.config.commitment * (codes.detach() - latents).square().mean((1, 2))
        if self.config.entropy:
            losses["entropy"] = self.config.entropy * indecision(distances / -self.config.temperature)
        # The difference is zero and carries the gradient: values are the codes to the bit.
        return Quantised(codes.detach() + (latents - latents.detach()), ids, losses)

    def values(self, ids: Tensor) -> Tensor:
        """The codes of ids (B, N) int64, (B, N, code_dim) float32."""
        return self.codebook.float()[ids]

    def no_weight_decay(self) -> set[str]:
        """Decay would draw codes that nobody chooses to zero."""
        return {"codebook"}


def fresh_codes(num_codes: int, code_dim: int) -> Tensor:
    """A codebook to begin with, as MaskGIT's: (num_codes, code_dim) float32, uniform."""
    reach = (3 / num_codes) ** 0.5
    return nn.init.uniform_(torch.empty(num_codes, code_dim), -reach, reach)


def code_distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances of latents (B, N, D) to the codes of codebook (K, D): (B, N, K)."""
    square = latents.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
    return square - 2 * latents @ codebook.T


def indecision(logits: Tensor) -> Tensor:
    """The mean entropy of the choices that logits (B, N, K) make, less the entropy of an image's mean choice, in nats:
    (B,) float32, from minus log N, each sure and all different, to 0, all alike."""
    chances = logits.softmax(-1)
    each = -(chances * logits.log_softmax(-1)).sum(-1).mean(1)
    mean = chances.mean(1)
    return each + torch.special.xlogy(mean, mean.clamp(min=1e-12)).sum(-1)


"""Vector quantisation whose codes are averages of the latents that chose them (van den Oord et al., "Neural Discrete
Representation Learning", appendix A.1), with codes that nobody chooses put elsewhere: the control beside codes that are
learned by gradient (vq.py).

The codebook is state and no parameter: float32 buffers that move after an update, by sums over the global batch. At
another world size the sums, like gradients, differ in their last bits only. An image that could not be read counts as
the blank one that stands in for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from pretrain.ranges import AT_LEAST_0, AT_LEAST_1, Range, check_ranges
from pretrain.tokenizers.quantiser import Quantised, Quantiser
from pretrain.tokenizers.vq import code_distances, fresh_codes

_MOVES = 16  # codes that one update may put elsewhere
_RANGES: dict[str, Range] = {
    "num_codes": (f"{_MOVES} or more", lambda v: v >= _MOVES),
    "code_dim": AT_LEAST_1,
    "commitment": AT_LEAST_0,
    "decay": ("from 0 to below 1", lambda v: 0 <= v < 1),
    "revive_ratio": ("from 0 to below 1", lambda v: 0 <= v < 1),
}


@dataclass(frozen=True)
class AveragedVQConfig:
    """A codebook of averages."""

    num_codes: int = 1024  # codes to choose among, 16 or more
    code_dim: int = 64  # channels of a code
    commitment: float = 0.25  # weight of the latents' distance to their codes
    decay: float = 0.99  # share that an update leaves of a code's average
    revive_ratio: float = 0.05  # a code chosen less often than so many times the mean is put where a latent is far off

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

    def build(self) -> AveragedVQ:
        """The quantiser with a fresh codebook."""
        return AveragedVQ(self)

    def flops(self, tokens: int) -> float:
        """FLOPs of comparing so many latents with all codes."""
        return 2.0 * tokens * self.num_codes * self.code_dim


class AveragedVQ(Quantiser):
    """Chooses in float32, whatever the number format of the latents."""

    codebook: Tensor  # (num_codes, code_dim)
    uses: Tensor  # (num_codes,): the average number of latents of a batch that choose each code
    sums: Tensor  # (num_codes, code_dim): the average of their sums

    def __init__(self, config: AveragedVQConfig) -> None:
        super().__init__()
        self.config = config
        codes = fresh_codes(config.num_codes, config.code_dim)
        self.register_buffer("codebook", codes)
        self.register_buffer("uses", torch.ones(config.num_codes))
        self.register_buffer("sums", codes.clone())
        self._seen: _Seen | None = None

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantised:
        """Latents (B, N, code_dim) as their nearest codes; noise is not used. What is trained on is remembered for the
        next `after_update`."""
        latents, codebook = latents.float(), self.codebook.float()
        ids = code_distances(latents.detach(), codebook).argmin(-1)
        codes = F.embedding(ids, codebook)
        losses = {}
        if self.config.commitment:
            losses["commitment"] = self.config.commitment * (codes - latents).square().mean((1, 2))
        if self.training and torch.is_grad_enabled():
            seen = _Seen.of(latents.detach().flatten(0, 1), ids.flatten(), codebook)
            self._seen = seen if self._seen is None else self._seen.with_more(seen)
        return Quantised(codes + (latents - latents.detach()), ids, losses)

    def values(self, ids: Tensor) -> Tensor:
        """The codes of ids (B, N) int64, (B, N, code_dim) float32."""
        return self.codebook.float()[ids]

    def moving(self) -> set[str]:
        """All of it."""
        return {"codebook", "uses", "sums"}

    @torch.no_grad()
    def after_update(self, skipped: Tensor) -> None:
        """Moves the codes by what this step's latents chose, on all ranks alike; where skipped () is 1, nothing."""
        if self._seen is None:
            return
        seen, self._seen = self._seen.of_all_ranks(), None
        weight = 1 - self.config.decay
        uses, sums = self.uses.lerp(seen.counts, weight), self.sums.lerp(seen.sums, weight)
        least = uses.argsort(stable=True)[:_MOVES]
        mean = uses.mean()
        idle = uses[least] < self.config.revive_ratio * mean
        uses[least] = torch.where(idle, mean, uses[least])
        sums[least] = torch.where(idle[:, None], mean * seen.far, sums[least])
        codes = sums / uses.clamp(min=1e-12)[:, None]
        for old, new in ((self.uses, uses), (self.sums, sums), (self.codebook, codes)):
            old.copy_(torch.where(skipped > 0, old, new))


@dataclass(frozen=True)
class _Seen:
    """What latents chose: sums that add up over batches, and the latents farthest from their codes."""

    counts: Tensor  # (K,)
    sums: Tensor  # (K, D)
    far: Tensor  # (_MOVES, D), farthest first
    distances: Tensor  # (_MOVES,), squared

    @classmethod
    def of(cls, latents: Tensor, ids: Tensor, codebook: Tensor) -> _Seen:
        """Of latents (n, D) that chose ids (n,)."""
        counts = torch.zeros_like(codebook[:, 0]).index_add_(0, ids, torch.ones_like(latents[:, 0]))
        sums = torch.zeros_like(codebook).index_add_(0, ids, latents)
        return cls(counts, sums, *_farthest(latents, (latents - codebook[ids]).square().sum(1)))

    def with_more(self, other: _Seen) -> _Seen:
        """Both together."""
        far = _farthest(torch.cat([self.far, other.far]), torch.cat([self.distances, other.distances]))
        return _Seen(self.counts + other.counts, self.sums + other.sums, *far)

    def of_all_ranks(self) -> _Seen:
        """All ranks' together, the same on each."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self
        packed = torch.cat([self.counts[:, None], self.sums], 1)
        dist.all_reduce(packed)
        mine = torch.cat([self.distances[:, None], self.far], 1)
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, mine)
        found = torch.cat(rows)
        return _Seen(packed[:, 0], packed[:, 1:], *_farthest(found[:, 1:], found[:, 0]))


def _farthest(latents: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """The _MOVES of latents (n, D) with the largest distances (n,), and these; repeated where there are fewer."""
    order = distances.argsort(descending=True, stable=True)[:_MOVES]
    order = order[torch.arange(_MOVES, device=order.device) % len(order)]
    return latents[order], distances[order]

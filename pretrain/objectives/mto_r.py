"""MTO-R: an add-on for objectives whose mask tokens are seen by other tokens. R stands for reconstruction: of the paper
(Choi et al., "Emerging Property of Masked Token for Effective Pre-training", ECCV 2024) only the abstract and summaries
could be read, no formula. docs/mto-r.md says what is known, what is not, and what was put in its place.

Two parts, each of which may be off. *Exclusion*: in early blocks visible queries do not see the hidden keys that have
taken nothing in yet. *Losses*: early, visible queries give hidden keys little weight (L_spa) and a mask token is unlike
every visible one (L_e); late, hidden queries look at few visible keys (L_r). Letters as in backbones/treatment.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from masking.mask import Mask
from masking.mto import early_weights, excluded_counts, to_one
from masking.rng import generator
from pretrain.backbones.base import BackboneConfig
from pretrain.backbones.treatment import BlockPlan, Treatment
from pretrain.errors import ConfigError
from pretrain.ranges import AT_LEAST_0, POSITIVE, SHARE, Range, check_ranges
from pretrain.types import Losses

_RANGES: dict[str, Range] = {
    "rho0": SHARE,
    "p": POSITIVE,
    "tau": POSITIVE,
    "lambda_spa": AT_LEAST_0,
    "lambda_e": AT_LEAST_0,
    "lambda_r": AT_LEAST_0,
    "ramp": SHARE,
    "frozen_token": POSITIVE,
}


class Treated(NamedTuple):
    """The blocks that an objective's mask tokens go through."""

    depth: int
    width: int
    hidden_share: float = 1.0  # of the hidden patches that have a token there


@runtime_checkable
class TreatedConfig(Protocol):
    """Settings of an objective that MTO-R can be added to."""

    def treated(self, backbone: BackboneConfig) -> Treated:
        """Its blocks with this encoder. Raises ConfigError where MTO-R cannot act in them."""
        ...


@dataclass(frozen=True)
class MtoRConfig:
    """Masked-token optimisation, reconstructed: not the published method, whose formulas could not be read."""

    # Those that moved least since the first block; as many, drawn anew each step; all of them in every block; none.
    exclude: Literal["unmoved", "random", "all", "none"] = "unmoved"  # hidden keys that visible queries do not see
    rho0: float = 1.0  # share of them in the first block, evenly fewer with depth, none in the last
    p: float = 1.0  # of n blocks, block l counts as an early one by (1 - l / (n - 1))^p, as a late one by the rest
    tau: float = 0.1  # temperature of the cosines that tell whether a mask token is like visible ones
    lambda_spa: float = 0.1  # weight of L_spa, what visible queries give to hidden keys in early blocks; 0: off
    lambda_e: float = 0.1  # weight of L_e, how much hidden tokens are like visible ones in early blocks; 0: off
    lambda_r: float = 0.1  # weight of L_r, the entropy of hidden queries over visible keys in late blocks; 0: off
    ramp: float = 0.05  # share of the run in which these weights rise from 0
    frozen_token: float | None = None  # the mask token is not trained, but drawn, of this deviation; None: trained

    @property
    def chooses(self) -> bool:
        """Whether a step hands over noise to choose by."""
        return self.exclude == "random" or (self.exclude == "unmoved" and 0 < self.rho0 < 1)

    def check(self, objective: object, backbone: BackboneConfig) -> None:
        """Raises ConfigError for settings that cannot be meant, and for objectives without mask tokens."""
        check_ranges(vars(self), _RANGES, "mto.")
        if not isinstance(objective, TreatedConfig):
            raise ConfigError(
                f"mto is an add-on for mask tokens that other tokens see, and objective={type(objective).__name__} has "
                "none; use SimMIMConfig or PixelMAEConfig, or set mto=none"
            )
        objective.treated(backbone)

    def plans(self, depth: int, num_hidden: int) -> tuple[BlockPlan, ...]:
        """What is done in each of depth blocks, where num_hidden patches of an image are hidden."""
        early = early_weights(depth, self.p)
        late = to_one(tuple(1 - weight for weight in early))
        early = to_one(early)
        counts = {"all": (num_hidden,) * depth, "none": (0,) * depth}.get(
            self.exclude, excluded_counts(depth, num_hidden, self.rho0)
        )
        weights = (
            [weight if loss > 0 else 0.0 for weight in shares]
            for loss, shares in ((self.lambda_spa, early), (self.lambda_e, early), (self.lambda_r, late))
        )
        return tuple(BlockPlan(*plan) for plan in zip(counts, *weights, strict=True))

    def forward_flops(self, treated: Treated, num_seen: int, num_hidden: int) -> float:
        """FLOPs of one image's forward for the losses: scores of seen queries with all keys, scores and cosines of
        hidden tokens with seen ones, in the blocks where they are asked for. Backward is twice that; what it computes
        again is not counted, as nowhere else."""
        total = 0.0
        for plan in self.plans(treated.depth, num_hidden):
            pairs = num_seen * (num_seen + num_hidden) * (plan.mass > 0)
            pairs += num_hidden * num_seen * ((plan.row > 0) + (plan.entropy > 0))
            total += 2 * pairs * treated.width
        return total


class MtoR(nn.Module):
    """The settings at work, and how far the losses' weights have risen."""

    ramp: Tensor  # () float32, on the device, and in the state dict

    def __init__(self, config: MtoRConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.depth = depth
        self.register_buffer("ramp", torch.tensor(1.0))

    def treatment(
        self, mask: Mask, ids: Tensor, num_prefix: int, rng: torch.Generator | Tensor | None = None, *,
        is_watched: bool = False,
    ) -> Treatment | None:  # fmt: skip
        """For hidden patches ids (B, M) behind the prefix and the visible ones; None where the settings leave nothing
        to do. rng is an objective's; None draws the same every time."""
        config = self.config
        plans = config.plans(self.depth, ids.shape[1])
        if not (is_watched or any(any(plan) for plan in plans)):
            return None
        if not isinstance(rng, Tensor) and not config.chooses:
            rng = torch.zeros(mask.hidden.shape, device=ids.device)  # nothing is chosen by it
        if not isinstance(rng, Tensor):
            rng = rng or generator(0, "mto")
            rng = torch.rand(mask.hidden.shape, generator=rng, device=rng.device).to(ids.device)
        return Treatment(
            plans, num_prefix + mask.num_visible, config.tau, rng.gather(1, ids), is_random=config.exclude == "random",
            is_watched=is_watched,
        )  # fmt: skip

    def losses(self, treatment: Treatment | None) -> Losses:
        """L_spa, L_e and L_r of a treatment that is through with its blocks, those that are on, each by its weight."""
        if treatment is None or treatment.terms is None:
            return {}
        factors = (self.config.lambda_spa, self.config.lambda_e, self.config.lambda_r)
        named = zip(("mto_spa", "mto_e", "mto_r"), factors, treatment.terms, strict=True)
        return {name: factor * self.ramp * term for name, factor, term in named if factor > 0}

    def at_step(self, step: int, total_steps: int) -> dict[str, float]:
        """Sets how far the weights have risen in step, counted from 0: 0 in the first, 1 behind the ramp."""
        steps = round(self.config.ramp * total_steps)
        ramp = min(1.0, step / steps) if steps else 1.0
        self.ramp.fill_(ramp)
        return {"mto_ramp": ramp}

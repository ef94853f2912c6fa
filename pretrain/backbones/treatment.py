"""MTO-R inside the blocks of one forward: who sees whom, the terms of its losses, and figures to look at.

An objective makes a treatment and hands it to the blocks its mask tokens go through; without one nothing here runs. A
sequence has its V seen tokens first (prefix, visible patches) and its M hidden ones behind them. Letters: B images, L =
V + M tokens, D width, H heads, E channels of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from masking.attention.weighting import Weighting
from masking.mto import drift, exclusion, heterogeneity
from masking.mto_statistics import attention_statistics, self_entropy


class BlockPlan(NamedTuple):
    """What is done in one block; a weight of 0 means that its term is never computed."""

    excluded: int = 0  # hidden keys that seen queries do not see
    mass: float = 0.0  # weight of L_spa's term
    entropy: float = 0.0  # of L_e's
    row: float = 0.0  # of L_r's


class Figures(NamedTuple):
    """What a block's input and attention are like, each (B,) float32; see masking/mto.py and mto_statistics.py."""

    self_mass: Tensor
    entropy: Tensor
    distance: Tensor
    mass: Tensor
    row: Tensor


class Treatment:
    """What has been planned for every block, and what the blocks passed so far have said."""

    def __init__(
        self, plans: Sequence[BlockPlan], num_seen: int, tau: float, noise: Tensor | None = None, *,
        is_random: bool = False, is_watched: bool = False,
    ) -> None:  # fmt: skip
        """noise (B, M) float decides which keys are excluded in the first block, where no hidden token has moved
        yet, and in all where is_random; is_watched asks for figures."""
        self.plans = plans
        self.num_seen = num_seen
        self.tau = tau
        self.is_random = is_random
        self.figures: list[Figures] | None = [] if is_watched else None
        self.terms: Tensor | None = None  # (3, B): mass, entropy, row, each weighted and summed over the blocks so far
        self._noise = noise
        self._start: Tensor | None = None  # (B, M, D), hidden tokens as the first block's norm has them
        self._looks_back = not is_random and any(plan.excluded for plan in plans[1:])
        self._passed = 0

    def run(self, block: nn.Module, x: Tensor, num_queries: int | None = None, *, checkpointing: bool) -> Tensor:
        """block(x, num_queries) as planned for it; blocks are passed in their order. With checkpointing backward runs
        the block again, and its terms are counted once all the same: they come out of the block as x does."""
        plan, is_first = self.plans[self._passed], self._passed == 0
        if is_first and self._looks_back:
            with torch.no_grad():
                self._start = block.norm1(x[:, self.num_seen :])  # type: ignore[operator]
        scores = self._noise if is_first or self.is_random else None
        if num_queries is not None:  # hidden tokens alone ask, and nothing is kept from them
            plan = plan._replace(excluded=0)

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            own = BlockTreatment(self, plan, scores)
            out = block(x, num_queries, None, own)
            return out, own.terms

        keeps = checkpointing and torch.is_grad_enabled()
        x, terms = checkpoint(run, x, use_reentrant=False) if keeps else run(x)
        self.terms = terms if self.terms is None else self.terms + terms
        self._passed += 1
        return x

    def scores(self, z: Tensor) -> Tensor:
        """How far the hidden of tokens z (B, L, D) have moved: (B, M) float32."""
        assert self._start is not None
        return drift(z[:, self.num_seen :], self._start)


class BlockTreatment:
    """One run of one block."""

    terms: Tensor

    def __init__(self, treatment: Treatment, plan: BlockPlan, scores: Tensor | None) -> None:
        """scores (B, M) float: the lowest are excluded; None: those of tokens that moved least."""
        self._treatment = treatment
        self._plan = plan
        self._scores = scores

    def __call__(self, z: Tensor, qkv: Tensor) -> Weighting:
        """The rule of attention for a block's normed input z (B, L, D) and its projection qkv (B, L, 3, H, E). Terms
        are taken on the way, of ordinary attention whatever the rule."""
        whole, plan = self._treatment, self._plan
        num_seen = whole.num_seen
        found = attention_statistics(qkv, num_seen, mass=plan.mass > 0, row=plan.row > 0)
        entropy = self_entropy(z, num_seen, whole.tau) if plan.entropy > 0 else torch.zeros_like(found[0])
        self.terms = torch.stack([plan.mass * found[0], plan.entropy * entropy, plan.row * found[1]])
        if whole.figures is not None:
            statistics = attention_statistics(qkv, num_seen, mass=True, row=True)
            whole.figures.append(Figures(*heterogeneity(z, num_seen, whole.tau), *statistics))
        return exclusion(self._places(z), num_seen, plan.excluded)

    def _places(self, z: Tensor) -> Tensor:
        num_hidden = z.shape[1] - self._treatment.num_seen
        if self._plan.excluded in (0, num_hidden):  # none or all: the order is of no matter
            return z.new_zeros(len(z), num_hidden, dtype=torch.float32)
        return self._treatment.scores(z) if self._scores is None else self._scores

"""MaskGIT's sampler as its paper has it, written out: no groups, no memory, one image at a time. What the sampler of
pretrain/generate must give bit for bit without local steps, with the same numbers."""

from __future__ import annotations

import math

import torch

from masking.draw import named_noise


def plain_sample(look, num_codes, mask_id, num, steps, number, seed, choice_temperature=4.5, start=None):
    """Ids (N,) int64 of image `number`; look gives logits (1, N, K) of ids (1, N)."""
    noise = named_noise(torch.tensor([number]), seed, "generate")
    ids = torch.full((1, num), mask_id) if start is None else start.clone()[None]
    unknown_at_start = int((ids == mask_id).sum())
    every = torch.arange(num)[None]
    for step in range(steps):
        known = ids != mask_id
        ratio = (step + 1) / steps
        probabilities = look(ids)[0].double().softmax(-1)
        picked = torch.zeros(num, dtype=torch.int64)
        for position in range(num):
            function = probabilities[position].cumsum(0)
            number_here = noise.uniform_at(every, f"token-{step}")[0, position].double() * function[-1]
            picked[position] = int((function <= number_here).sum())
        gumbel = -(-(noise.uniform_at(every, f"choice-{step}")[0].double() + 2.0**-25).log()).log()
        score = probabilities.log().gather(1, picked[:, None])[:, 0] + choice_temperature * (1 - ratio) * gumbel
        score[known[0]] = torch.inf
        picked = torch.where(known[0], ids[0], picked)
        unknown = int((~known).sum())
        masked = max(1, min(unknown - 1, math.floor(unknown_at_start * math.cos(math.pi / 2 * ratio))))
        masked = 0 if step == steps - 1 else masked
        again = score.argsort(stable=True)[:masked]
        picked[again] = mask_id
        ids = picked[None]
    assert not (ids >= num_codes).any()
    return ids[0]

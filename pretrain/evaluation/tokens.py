"""Patch tokens of a whole split, which are hundreds of times what a pooled feature is: half precision, and a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.errors import ConfigError, NumericalError

LIMIT_BYTES = 8 * 10**9  # of one split: 26,000 images of a ViT-B/16 at 224 px


class TokenStore:
    """Tokens (n, N, D) float16 on the CPU, as they come. float16 has 11 bits of a number where bfloat16 has 8, and
    tokens behind a norm do not need the range."""

    def __init__(self, expected: int, limit_bytes: int = LIMIT_BYTES) -> None:
        """expected: images that will come, 0 where nobody knows; their room is taken, or refused, at the first."""
        self._expected, self._limit, self._count = expected, limit_bytes, 0
        self._rows = torch.zeros(0, 0, 0, dtype=torch.float16)

    @property
    def rows(self) -> Tensor:
        """(n, N, D) float16: what came."""
        return self._rows[: self._count]

    def add(self, tokens: Tensor) -> None:
        """Keeps tokens (B, N, D). Raises ConfigError where they do not find room, NumericalError for what is no number
        in float16."""
        needed = self._count + len(tokens)
        if needed > len(self._rows):
            self._grow(max(needed, self._expected, 2 * self._count), tokens)
        half = tokens.to(torch.float16)
        if not bool(half.isfinite().all()):
            raise NumericalError(
                "patch tokens are not finite in float16, as the attentive probe keeps them: these weights are of no "
                "use, or their tokens exceed 65504; leave attentive out of the methods to measure the others"
            )
        self._rows[self._count : needed] = half.cpu()
        self._count = needed

    def _grow(self, count: int, tokens: Tensor) -> None:
        each, wanted = tokens[0].numel() * 2, max(self._expected, self._count + len(tokens))
        room = self._limit // each
        if wanted > room:
            raise ConfigError(
                f"attentive keeps every patch token: {wanted} images of {tokens.shape[1]} tokens of width "
                f"{tokens.shape[2]} take {wanted * each / 1e9:.1f} GB, and {self._limit / 1e9:.1f} GB a split are "
                f"allowed; use at most {room} images (--max-images, evaluation.max_images), or leave attentive out of "
                "the methods"
            )
        grown = torch.empty(min(count, room), *tokens.shape[1:], dtype=torch.float16)
        if self._count:
            grown[: self._count] = self.rows
        self._rows = grown

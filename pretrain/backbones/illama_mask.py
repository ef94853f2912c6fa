"""The mask that iLLaMA's weights were trained under, and the place of their class token: as the numbers that travel
with them, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["paper", "exact", "prefix", "bidirectional"]
Place = Literal["last", "first", "first_seen"]
_MODES: tuple[Mode, ...] = get_args(Mode)
_PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Layout:
    """Who sees whom, but for alpha."""

    mode: Mode = "paper"
    class_token: Place = "last"
    unmasked_blocks: tuple[int, ...] = ()  # ascending

    @classmethod
    def of(cls, mode: Mode, class_token: Place, unmasked_blocks: Iterable[int] | None) -> Layout:
        """That of an encoder's settings."""
        return cls(mode, class_token, tuple(sorted(unmasked_blocks or ())))

    @classmethod
    def read(cls, numbers: Sequence[float]) -> Layout:
        """What `numbers` made; checkpoints have it as floats."""
        mode, place, *blocks = map(int, numbers)
        return cls(_MODES[mode], _PLACES[place], tuple(index for index, unmasked in enumerate(blocks) if unmasked))

    def numbers(self, depth: int) -> list[int]:
        """As a buffer of an encoder of depth blocks holds it, 2 + depth numbers."""
        flags = [int(index in self.unmasked_blocks) for index in range(depth)]
        return [_MODES.index(self.mode), _PLACES.index(self.class_token), *flags]

    def fits(self, other: Layout) -> bool:
        """Whether weights trained under other can be trained on under this one: the mask is no property of weights, but
        the side where the class token stands is, for positions and turns were learned with it."""
        return (self.class_token == "last") == (other.class_token == "last")

    def __str__(self) -> str:
        blocks = ",".join(map(str, self.unmasked_blocks)) or "none"
        return f"mode={self.mode} class_token={self.class_token} unmasked_blocks={blocks}"

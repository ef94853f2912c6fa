"""iLLaMA's soft mask: how much the tokens after a token count, as a function of the step alone. Its authors let it fall
from 1 to 0 (Wang et al., "Adapting LLaMA Decoder to Vision Transformer", section 3.4); it may rise as well, where a
causal encoder is to become a bidirectional one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.ranges import AT_LEAST_0, SHARE, Range, check_ranges

_RANGES: dict[str, Range] = {"cutoff": AT_LEAST_0, "start": SHARE, "end": SHARE}


@dataclass(frozen=True)
class SoftMask:
    """The schedule of alpha, the factor of attention to later tokens."""

    kind: Literal["constant", "linear"] = (
        "constant"  # start until the cutoff, or from it at the first step to end there
    )
    cutoff: float = 1 / 6  # how long that lasts; afterwards alpha is end
    unit: Literal["run", "epochs"] = "run"  # what cutoff counts: shares of the run, or passes over the data
    start: float = 1.0  # alpha before the cutoff; of a linear one, at the first step
    end: float = 0.0  # alpha after the cutoff: 0 is causal, 1 as if there were no mask

    def check(self) -> None:
        """Raises ConfigError for a schedule that cannot be meant."""
        check_ranges(vars(self), _RANGES, "backbone.soft_mask.")
        if self.unit == "run":
            check_ranges(vars(self), {"cutoff": SHARE}, "backbone.soft_mask.")

    @property
    def initial(self) -> float:
        """alpha before the first step."""
        return self.start if self.cutoff > 0 else self.end

    def alpha(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """alpha of step, counted from 0. With n steps before the cutoff, linear is linspace(start, end, n): the first
        and the last of them are start and end."""
        before = round(self.cutoff * (total_steps if self.unit == "run" else steps_per_epoch))
        if step >= before:
            return self.end
        if self.kind == "constant" or before == 1:
            return self.start
        return self.start + (self.end - self.start) * (step / (before - 1))

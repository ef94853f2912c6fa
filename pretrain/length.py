"""How long a run is: optimizer steps, given or counted from passes over the data."""

from __future__ import annotations

import math

from pretrain.config import Config


def steps_of(config: Config, num_samples: int) -> int:
    """Optimizer steps of the whole run: as given, or from passes over the data (k crops a decode count as k)."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * steps_per_epoch(config, num_samples)))


def steps_per_epoch(config: Config, num_samples: int) -> float:
    """Optimizer steps of one pass over the data; k crops a decode count as k passes' worth."""
    return config.data.crops_per_decode * num_samples / config.data.batch_size

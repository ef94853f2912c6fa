"""What the environment says about W&B, handed in because only launch/environment.py reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WandbAccess:
    """Whether a key is there (never the key itself), the server, and WANDB_MODE."""

    has_key: bool = False
    base_url: str = "https://api.wandb.ai"
    mode: str | None = None

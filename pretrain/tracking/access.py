"""What the tracker is told of the environment about W&B; `launch.environment.wandb_access` fills it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WandbAccess:
    """Whether W&B could be reached at all, and how the user wants it."""

    has_key: bool = False  # an API key is in the environment or in netrc
    base_url: str = "https://api.wandb.ai"  # server
    mode: str | None = None  # WANDB_MODE: online, offline or disabled; the config's own choice goes first

"""What tracking can be told. The comment behind a field is its help text in `lacuna config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrackingConfig:
    """What is written while a run goes on; JSON lines always, W&B as their mirror."""

    log_every: int = 20  # steps between two reads of the device; every step has its own line all the same
    panels_every: int | None = 1000  # steps between two pictures of reconstructions; None: none
    panel_images: int = 8  # images in such a picture
    samples_every: int | None = None  # steps between two pictures of generated images, of MaskGIT, MAGE and MAR; None: none
    wandb: Literal["auto", "online", "offline", "off"] = "auto"  # auto: online with a key and a network, else offline
    project: str = "lacuna"  # W&B project
    entity: str | None = None  # W&B entity; None: the key's default
    group: str | None = None  # W&B group, for sweeps

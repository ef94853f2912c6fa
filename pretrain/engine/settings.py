"""What optimizer, engine and checkpoints can be told. The comment behind a field is its help text in `lacuna config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and a half cosine; lr = base_lr * data.batch_size / 256 (MAE, appendix A.1)."""

    base_lr: float = 1.5e-4  # learning rate at a global batch of 256
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's decay rates
    eps: float = 1e-8  # AdamW's epsilon
    weight_decay: float = 0.05  # not applied to norms, biases, positions and tokens
    layer_decay: float | None = None  # rate of a layer as a share of the next one's; None: one rate for all
    warmup: float = 0.05  # linear warm-up, as a share of the run's steps
    final_lr_ratio: float = 0.0  # the cosine ends at this share of lr
    clip_norm: float | None = None  # gradients are scaled down to this global norm; None: not clipped


@dataclass(frozen=True)
class EngineConfig:
    """How DeepSpeed runs the model; its JSON is derived from this and written to the run directory."""

    zero_stage: Literal[0, 1, 2, 3] = 1  # what DeepSpeed partitions over ranks: nothing, optimizer, gradients, weights
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 with fp32 master weights where the hardware multiplies bf16, else fp32
    accumulation: int = 1  # micro-batches in one optimizer step of a rank
    ema_decay: float | None = None  # decay per step of the exponential moving average of the weights; None: none is kept
    activation_checkpointing: bool = False  # recompute blocks in backward: less memory, about a third more time
    compile: bool = True  # torch.compile on a GPU; a CPU gains nothing from it and is left alone
    max_skipped: int = 10  # steps in a row with a loss or gradient that is not finite before the run stops
    collective_timeout_s: float = 600.0  # a collective that takes longer ends the attempt, seconds


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run's state is saved, and what is kept."""

    every_steps: int = 1000  # steps between two checkpoints
    keep: int = 3  # newest verified checkpoints that stay, at least 2
    milestone_every: int | None = None  # checkpoints at multiples of so many steps stay for ever; None: no milestones
    background: bool = False  # a thread writes a copy while training goes on; the last save and that of a stopped run are waited for
    grace_s: float = 30.0  # seconds a stopped process has until it is killed (SLURM: GraceTime, or KillWait): a save that takes longer is not begun

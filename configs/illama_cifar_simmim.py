"""SimMIM with an iLLaMA encoder for images of 32 x 32 pixels such as CIFAR's: mask tokens stand where patches are hidden,
and once the mask is causal a hidden patch sees only what comes before it. Its baseline is configs/simmim_cifar.py.

Command:   lacuna train configs/illama_cifar_simmim.py data.train='shards/*.tar'
Hardware:  one CPU core, or any GPU
Expected:  50,000 images of CIFAR-10, 250 steps of 64 images, width 128, 5 blocks, constant schedule, cutoff 0.6: the loss
           jumps from 0.61 to 0.69 (means of 10 steps) where alpha falls to 0, and is at 0.62 within 40 steps
"""

from masking.ratio import FixedRatio
from masking.strategies.coarse import Coarse
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.soft_mask import SoftMask
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.simmim import SimMIMConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="illama_cifar_simmim",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=128, crop_scale=(0.67, 1.0), workers=1
        ),
        backbone=IllamaConfig("tiny", patch_size=4, depth=6, soft_mask=SoftMask("linear", 1 / 6)),
        objective=SimMIMConfig(),
        mask=Coarse(FixedRatio(10 / 16), unit=2),
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=1000),
    )

"""MAE with an iLLaMA encoder for images of 32 x 32 pixels such as CIFAR's: visible patches alone go through it, in raster
order, and a soft mask makes it causal after the first sixth of the run. Its baseline is configs/mae_cifar.py.

Command:   lacuna train configs/illama_cifar_mae.py data.train='shards/*.tar'
Hardware:  one CPU core, or any GPU
Expected:  50,000 images of CIFAR-10, 900 steps of 64 images, width 128, 5 blocks, one decoder block of width 96, cutoff
           0.75: the loss jumps from 0.605 to 0.654 (means of 15 steps) where alpha falls to 0, and is back within 60
           steps. Features were not measured
"""

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.soft_mask import SoftMask
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="illama_cifar_mae",
        data=DataConfig(train="shards/*.tar", image_size=(32, 32), batch_size=128, workers=1),
        backbone=IllamaConfig("tiny", patch_size=4, depth=6, soft_mask=SoftMask("constant", 1 / 6)),
        objective=PixelMAEConfig(decoder_width=128, decoder_depth=2, decoder_heads=4),
        mask=Uniform(FixedRatio(0.75)),
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=1000),
    )

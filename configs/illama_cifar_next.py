"""Next-patch prediction with a prefix, as AIM (arXiv 2401.08541), for images of 32 x 32 pixels such as CIFAR's; 15 % of
the input patches are mask tokens, as in MEAP (arXiv 2502.07490).

Command:   lacuna train configs/illama_cifar_next.py data.train='shards/*.tar'
Hardware:  one CPU core, or any GPU
Expected:  50,000 images of CIFAR-10, 200 steps of 64 images, width 128, 5 blocks: the loss falls from 1.97 to 0.50 (means
           of 10 steps). It is of other patches than MAE's, and knows its neighbours: the two are no comparison
"""

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.illama import IllamaConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.next_patch import NextPatchConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="illama_cifar_next",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=128, crop_scale=(0.4, 1.0), workers=1
        ),
        backbone=IllamaConfig("tiny", patch_size=4, depth=6, mode="prefix", soft_mask=None),
        objective=NextPatchConfig(head_depth=2),
        mask=Uniform(FixedRatio(0.15)),
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=1000),
    )

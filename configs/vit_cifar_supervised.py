"""A ViT trained on the class of the image, for images of 32 x 32 pixels such as CIFAR's: width, blocks, learned positions and
recipe of configs/illama_cifar_supervised.py, whose baseline it is.

Command:   lacuna train configs/vit_cifar_supervised.py data.train='train/*.tar' data.val='val/*.tar'
Hardware:  one CPU core, or any GPU
Expected:  not measured at this size. Seen at width 64, 4 blocks and 500 steps of 64 images: 39.7 % by its own head, 38.8 % by a
           linear probe (benchmarks/results/illama-variants.md)
"""

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="vit_cifar_supervised",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=128, crop_scale=(0.4, 1.0), workers=1
        ),
        backbone=ViTConfig("tiny", patch_size=4, depth=6, positions="learned"),
        objective=SupervisedConfig(num_classes=10),
        mask=None,
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, betas=(0.9, 0.999), final_lr_ratio=1e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=None),
    )

"""MaskGIT for images of 32 x 32 pixels such as CIFAR's: 8 x 8 tokens of configs/tokenizer_fsq_cifar.py, told of the class.

Command:   lacuna train configs/tokenizer_fsq_cifar.py data.train='shards/*.tar'
           lacuna train configs/maskgit_cifar.py data.train='shards/*.tar'
           lacuna generate runs/maskgit_cifar --num 64 --steps 8
Hardware:  any GPU; on a CPU make it smaller, as docs/generate.md does
Expected:  not trained at this size. Seen at width 192, 6 blocks and 2,200 steps of 64 images: docs/generate.md
"""

from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.maskgit import MaskGITConfig
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="maskgit_cifar",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=256, crop_scale=(0.8, 1.0), workers=1
        ),
        backbone=TokenViTConfig(
            TokenizerConfig("runs/tokenizer_fsq_cifar"), size="small", depth=8, classes=10, class_drop=0.1
        ),
        objective=MaskGITConfig(),
        mask=None,
        steps=100_000,
        optim=OptimConfig(base_lr=3e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup=0.05, clip_norm=3.0),
        engine=EngineConfig(ema_decay=0.9999),
        checkpoint=CheckpointConfig(every_steps=1000),
        tracking=TrackingConfig(log_every=50, panels_every=None, samples_every=5000),
    )

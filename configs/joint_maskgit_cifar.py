"""A joint sampler for configs/maskgit_cifar.py: one block that says what its next full pass would, after ADJUST.

Command:   lacuna train configs/joint_maskgit_cifar.py data.train='shards/*.tar'
           lacuna generate runs/maskgit_cifar --num 64 --steps 16 --recap 1 --joint runs/joint_maskgit_cifar
Hardware:  any GPU, or a few CPU cores
Expected:  not trained at this size. Seen at width 192, 500 steps of 64 images, for a MaskGIT as small: 0.062 nats from the
           next full pass, 0.201 without it (docs/generate.md)
"""

from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.joint_sampler import JointSamplerConfig
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="joint_maskgit_cifar",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=256, crop_scale=(0.8, 1.0), workers=1
        ),
        backbone=TokenViTConfig(
            TokenizerConfig("runs/tokenizer_fsq_cifar"), size="small", depth=1, classes=10, class_drop=0.1, dropout=0.0
        ),
        objective=JointSamplerConfig("runs/maskgit_cifar"),
        mask=None,
        steps=10_000,
        optim=OptimConfig(base_lr=5e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup=0.05, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.999),
        checkpoint=CheckpointConfig(every_steps=1000),
        tracking=TrackingConfig(log_every=50, panels_every=None),
    )

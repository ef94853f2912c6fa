"""A tokenizer for images of 32 x 32 pixels such as CIFAR's: 8 x 8 continuous tokens of 8
numbers. Who generates them multiplies them by one over their deviation, the last std in inspections.jsonl.

Command:   lacuna train configs/tokenizer_kl_cifar.py data.train='train/*.tar' data.val='val/*.tar'
Hardware:  any GPU
Expected:  not measured at this size. Seen at width 32 and 1,200 steps of 64 images: 27.2 dB, deviation 0.73
"""

from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.reconstruction import ReconstructionConfig
from pretrain.tokenizers.kl import KLConfig
from pretrain.tokenizers.trained import ConvTokenizerConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="tokenizer_kl_cifar",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=128, crop_scale=(1.0, 1.0),
            crop_aspect=(1.0, 1.0), workers=1,
        ),
        backbone=ConvTokenizerConfig(KLConfig(channels=8), patch_size=4),
        objective=ReconstructionConfig(),
        mask=None,
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, final_lr_ratio=0.01, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20),
    )

"""A tokenizer for images of 32 x 32 pixels such as CIFAR's: 8 x 8 tokens of 1000 codes, finite scalar quantisation.

Command:   lacuna train configs/tokenizer_fsq_cifar.py data.train='train/*.tar' data.val='val/*.tar'
Hardware:  any GPU
Expected:  not measured at this size. Seen at width 32 and 1,200 steps of 64 images: 24.3 dB, 995 of 1,000 codes used
"""

from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.reconstruction import ReconstructionConfig
from pretrain.tokenizers.fsq import FSQConfig
from pretrain.tokenizers.trained import ConvTokenizerConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="tokenizer_fsq_cifar",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=128, crop_scale=(1.0, 1.0),
            crop_aspect=(1.0, 1.0), workers=1,
        ),
        backbone=ConvTokenizerConfig(FSQConfig((8, 5, 5, 5)), patch_size=4),
        objective=ReconstructionConfig(),
        mask=None,
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, final_lr_ratio=0.01, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20),
    )

"""MAR for images of 32 x 32 pixels such as CIFAR's, without any tokenizer: 64 tokens of 4 x 4 pixels.

Sixteen buffer tokens stand for the paper's 64, which would be as many as the image's. Patches lie within 2 deviations of
grey, so that is where the head's steps are bounded.

Command:   lacuna train configs/mar_cifar.py data.train='shards/*.tar'
           lacuna generate runs/mar_cifar --num 64 --steps 32
Hardware:  any GPU; on a CPU make it smaller, as docs/generate.md does
Expected:  not trained at this size. Seen at width 128, 4 + 4 blocks and 2,600 steps of 64 images: docs/generate.md
"""

from masking.ratio import TruncatedNormalRatio
from masking.strategies.uniform import Uniform
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.diffusion import DiffusionConfig
from pretrain.objectives.mar import MARConfig
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="mar_cifar",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=512, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0),
            workers=1,
        ),
        backbone=TokenViTConfig(
            TokenizerConfig("pixels", patch_size=4), size="small", depth=6, num_prefix=16, classes=10, class_drop=0.1
        ),
        objective=MARConfig(decoder_depth=6, head=DiffusionConfig(width=512, clip=2.0)),
        mask=Uniform(TruncatedNormalRatio(mode=1.0, std=0.25, low=0.7)),
        steps=100_000,
        optim=OptimConfig(base_lr=1e-4, weight_decay=0.02, warmup=0.25, final_lr_ratio=1.0, clip_norm=3.0),
        engine=EngineConfig(ema_decay=0.9999),
        checkpoint=CheckpointConfig(every_steps=1000),
        tracking=TrackingConfig(log_every=50, panels_every=None, samples_every=5000),
    )

"""MAGE for images of 32 x 32 pixels such as CIFAR's: an encoder whose features are worth something, and a generator.

Command:   lacuna train configs/tokenizer_fsq_cifar.py data.train='shards/*.tar'
           lacuna train configs/mage_cifar.py data.train='shards/*.tar'
           lacuna evaluate runs/mage_cifar --data 'val/*.tar' --untrained
           lacuna generate runs/mage_cifar --num 64 --steps 20 --choice-temperature 6
Hardware:  any GPU; on a CPU make it smaller, as docs/generate.md does
Expected:  not trained at this size. Seen at width 192, 6 + 2 blocks and 1,800 steps of 64 images: a linear probe of 39.6 %,
           22.9 % before training (4,000 images to learn from; kNN on pixels 37.8 %)
"""

from masking.ratio import TruncatedNormalRatio
from masking.strategies.uniform import Uniform
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.mage import MAGEConfig
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="mage_cifar",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=512, crop_scale=(0.2, 1.0), workers=1
        ),
        backbone=TokenViTConfig(TokenizerConfig("runs/tokenizer_fsq_cifar"), size="small"),
        objective=MAGEConfig(decoder_depth=4, decoder_heads=6),
        mask=Uniform(TruncatedNormalRatio()),
        epochs=400,
        optim=OptimConfig(base_lr=1.5e-4, weight_decay=0.05, warmup=0.025, clip_norm=3.0),
        engine=EngineConfig(ema_decay=0.9999),
        checkpoint=CheckpointConfig(every_steps=1000),
        tracking=TrackingConfig(log_every=50, panels_every=5000, samples_every=5000),
    )

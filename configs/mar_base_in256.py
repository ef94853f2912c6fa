"""MAR-B as in Li et al. 2024 (arXiv 2406.11838, section 5) and its released code: 12 + 12 blocks of width 768, a head of 6 x
1024; 256 tokens of configs/tokenizer_kl_in256.py in place of latent diffusion's KL-16.

208 million parameters. The tokenizer's scale must be set, one over its deviation: see docs/tokenizers.md. The paper's L is
backbone.size=large backbone.depth=16 objective.decoder_depth=16 objective.head.width=1280 objective.head.depth=8; its H
backbone.size=huge backbone.depth=20 objective.decoder_depth=20 objective.head.width=1536 objective.head.depth=12.

Command:   srun lacuna train configs/mar_base_in256.py data.train='train/*.tar' backbone.tokenizer.scale=0.2325
           lacuna generate runs/mar_base_in256 --num 64 --steps 64 --guidance 1.9
Hardware:  any number of GPUs; 2048 / (GPUs x engine.accumulation) images must fit on one
Expected:  ImageNet-1k, 800 epochs, 256 steps, with its own tokenizer: FID 3.48, with guidance 2.31 (published); not run
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
        name="mar_base_in256",
        data=DataConfig(
            train="shards/*.tar", image_size=(256, 256), batch_size=2048, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0),
            workers=8,
        ),
        backbone=TokenViTConfig(
            TokenizerConfig("runs/tokenizer_kl_in256"), num_prefix=64, classes=1000, class_drop=0.1
        ),
        objective=MARConfig(decoder_depth=12, head=DiffusionConfig(width=1024, depth=6)),
        mask=Uniform(TruncatedNormalRatio(mode=1.0, std=0.25, low=0.7)),
        epochs=800,
        optim=OptimConfig(base_lr=1e-4, weight_decay=0.02, warmup=0.125, final_lr_ratio=1.0, clip_norm=3.0),
        engine=EngineConfig(ema_decay=0.9999),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=50_000),
        tracking=TrackingConfig(panels_every=None, samples_every=10_000),
    )

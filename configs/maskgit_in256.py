"""MaskGIT as in Chang et al. 2022 (arXiv 2202.04200, section 4) and its released code: 24 blocks of width 768, norms behind
the sums, 256 tokens of configs/tokenizer_fsq_in256.py in place of its VQGAN's 1024 codes.

With 1024 codes it has the 172,457,193 parameters of the published checkpoint. For guidance set backbone.class_drop=0.1.

Command:   srun lacuna train configs/maskgit_in256.py data.train='train/*.tar'
           lacuna generate runs/maskgit_in256 --num 64 --steps 8
Hardware:  any number of GPUs; 256 / (GPUs x engine.accumulation) images must fit on one
Expected:  ImageNet-1k, with its own tokenizer: FID 6.18, 8 steps (published); not run here
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
        name="maskgit_in256",
        data=DataConfig(
            train="shards/*.tar", image_size=(256, 256), batch_size=256, crop_scale=(0.8, 1.0), workers=8
        ),
        backbone=TokenViTConfig(
            TokenizerConfig("runs/tokenizer_fsq_in256"), depth=24, heads=16, classes=1000, post_norm=True
        ),
        objective=MaskGITConfig(),
        mask=None,
        epochs=300,
        optim=OptimConfig(
            base_lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup=0.0033, final_lr_ratio=1.0
        ),
        engine=EngineConfig(ema_decay=0.9999),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=100_000),
        tracking=TrackingConfig(panels_every=None, samples_every=10_000),
    )

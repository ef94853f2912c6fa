"""A tokenizer for images of 256 x 256 pixels: 16 x 16 tokens of 1000 codes, as many tokens as MaskGIT's and MAGE's have.

Channels and sizes are those of MaskGIT's VQGAN (Chang et al. 2022) but for its last doubling; the loss has no perceptual
and no adversarial term, so pictures are softer than theirs.

Command:   srun lacuna train configs/tokenizer_fsq_in256.py data.train='train/*.tar' data.val='val/*.tar'
Hardware:  any number of GPUs; 256 / (GPUs x engine.accumulation) images must fit on one
Expected:  not run; MaskGIT's own, with those terms, has a reconstruction FID of 2.28 (published)
"""

from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.reconstruction import ReconstructionConfig
from pretrain.tokenizers.fsq import FSQConfig
from pretrain.tokenizers.trained import ConvTokenizerConfig


def config() -> Config:
    return Config(
        name="tokenizer_fsq_in256",
        data=DataConfig(
            train="shards/*.tar", image_size=(256, 256), batch_size=256, crop_scale=(0.8, 1.0), crop_aspect=(1.0, 1.0),
            workers=8,
        ),
        backbone=ConvTokenizerConfig(FSQConfig((8, 5, 5, 5)), patch_size=16, width=128),
        objective=ReconstructionConfig(),
        mask=None,
        steps=300_000,
        optim=OptimConfig(base_lr=3e-4, betas=(0.9, 0.99), weight_decay=0.01, final_lr_ratio=0.01, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.999),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=50_000),
    )

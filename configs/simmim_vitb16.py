"""SimMIM, ViT-B/16, as in Xie et al. 2022 (arXiv 2111.09886, section 4.1): units of 32 pixels hidden, 0.6 of them rounded
up (30 of 49: 120 of 196 patches), mask tokens in the encoder, absolute error of raw pixels, one linear layer as head.

Command:   srun lacuna train configs/simmim_vitb16.py data.train='shards/*.tar' name=first
Hardware:  any number of GPUs; 2048 / (GPUs x engine.accumulation) images must fit on one. An image costs 1.8 times the
           arithmetic of configs/mae_vitb16.py (docs/objectives.md)
Expected:  ImageNet-1k, 800 epochs: 83.8 % after fine-tuning (published). Not run here.

Two things differ from the published code: its positions are a relative bias shared by all blocks, ours are the
absolute ones of MAE; its rate stays at the peak and falls to a tenth after epoch 700, ours is a cosine. The rate, 1e-4
for 512 images there, is 5e-5 for 256 here: 4e-4 at the peak in both.
"""

from masking.ratio import FixedRatio
from masking.strategies.coarse import Coarse
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.simmim import SimMIMConfig


def config() -> Config:
    return Config(
        name="simmim_vitb16",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(224, 224),
            batch_size=2048,
            crop_scale=(0.67, 1.0),
            crop_aspect=(3 / 4, 4 / 3),
            workers=8,
        ),
        backbone=ViTConfig("base", patch_size=16, layer_scale=0.1, drop_path=0.1),
        objective=SimMIMConfig(),
        mask=Coarse(FixedRatio(30 / 49), unit=2),
        epochs=800,
        optim=OptimConfig(base_lr=5e-5, betas=(0.9, 0.999), weight_decay=0.05, warmup=10 / 800, clip_norm=5.0),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=50_000),
    )

"""MAE, ViT-B/16, as in He et al. 2022 (arXiv 2111.06377, appendix A.1): 75 % hidden, normalised pixels, 8 x 512 decoder.

Command:   srun lacuna train configs/mae_vitb16.py data.train='shards/*.tar' name=first
Hardware:  any number of GPUs; 4096 / (GPUs x engine.accumulation) images must fit on one
Expected:  ImageNet-1k, 1600 epochs: 83.6 % after fine-tuning (published); 800 epochs take about half of the time
           for a little less; linear probe of the class token 68.0 % (published, 1600 epochs)
"""

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.pixel import PixelMAEConfig


def config() -> Config:
    return Config(
        name="mae_vitb16",
        data=DataConfig(train="shards/*.tar", image_size=(224, 224), batch_size=4096, workers=8),
        backbone=ViTConfig("base", patch_size=16),
        objective=PixelMAEConfig(decoder_width=512, decoder_depth=8, decoder_heads=16),
        mask=Uniform(FixedRatio(0.75)),
        epochs=800,
        optim=OptimConfig(base_lr=1.5e-4, warmup=0.05),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=25_000),
    )

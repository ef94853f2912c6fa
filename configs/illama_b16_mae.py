"""MAE with an iLLaMA-B/16 encoder: only visible patches go through it, in raster order and each at its own place, and a
soft mask makes it causal after the first sixth of the run. Nobody has published such a run; the recipe is MAE's.

Command:   srun lacuna train configs/illama_b16_mae.py data.train='shards/*.tar' name=first
Hardware:  any number of GPUs; 4096 / (GPUs x engine.accumulation) images must fit on one
Expected:  not known. MAE with bidirectional LLaMA blocks reached 84.0 % fine-tuned after 800 epochs (VisionLLaMA,
           arXiv 2403.00522); causal encoders have so far been no better than bidirectional ones
"""

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.soft_mask import SoftMask
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.pixel import PixelMAEConfig


def config() -> Config:
    return Config(
        name="illama_b16_mae",
        data=DataConfig(train="shards/*.tar", image_size=(224, 224), batch_size=4096, workers=8),
        backbone=IllamaConfig("base", patch_size=16, soft_mask=SoftMask("linear", 1 / 6)),
        objective=PixelMAEConfig(decoder_width=512, decoder_depth=8, decoder_heads=16),
        mask=Uniform(FixedRatio(0.75)),
        epochs=800,
        optim=OptimConfig(base_lr=1.5e-4, warmup=0.05),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=25_000),
    )

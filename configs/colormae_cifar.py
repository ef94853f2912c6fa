"""ColorMAE on CIFAR-size images: green noise, patches of 4 on 32 pixels, for a laptop.

Command:   lacuna train configs/colormae_cifar.py data.train='train/*.tar' data.val='val/*.tar' name=green
Other:     mask.color=blue, red, purple or white, and mask=Uniform for MAE's own masks
Hardware:  one CPU core does about 500 images a second; a GPU is bound by its loader
Expected:  benchmarks/results/color-arms.json compares the colours on a small budget
"""

from masking.ratio import FixedRatio
from masking.strategies.color import ColorNoise
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="colormae_cifar",
        data=DataConfig(train="train/*.tar", val="val/*.tar", image_size=(32, 32), batch_size=128, workers=1),
        backbone=ViTConfig("tiny", patch_size=4, width=192, depth=6, heads=3),
        objective=PixelMAEConfig(decoder_width=128, decoder_depth=2, decoder_heads=4),
        mask=ColorNoise(FixedRatio(0.75), color="green"),
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=1000),
        evaluation=EvaluationConfig(every_steps=1000, methods=("knn", "linear")),
    )

"""A tiny MAE on the photographs that ship inside scikit-image: the fixture of tests and of the curious.

Command:   lacuna train configs/tiny_cpu.py
Hardware:  two CPU cores, under a minute
Expected:  loss falls from about 1.1 below 0.5 in 100 steps
"""

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="tiny_cpu",
        data=DataConfig(train="embedded", image_size=(64, 64), batch_size=64, workers=1),
        backbone=ViTConfig("tiny", patch_size=8, width=96, depth=4, heads=3),
        objective=PixelMAEConfig(decoder_width=64, decoder_depth=2, decoder_heads=4),
        mask=Uniform(FixedRatio(0.75)),
        steps=100,
        optim=OptimConfig(base_lr=4e-3),
        engine=EngineConfig(precision="fp32", ema_decay=0.99),
        checkpoint=CheckpointConfig(every_steps=50),
        tracking=TrackingConfig(log_every=10, panels_every=50),
        evaluation=EvaluationConfig(every_steps=50, max_images=1000),
    )

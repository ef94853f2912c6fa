"""MAE for few and small images: a narrow ViT with patches of 8 on 64-pixel crops, for a laptop or half an hour of CPU.

Command:   lacuna train configs/mae_tiny64.py data.train='train/*.tar' data.val='val/*.tar' name=small
Hardware:  one CPU core does about 150 images a second; a GPU is bound by its loader
Expected:  2,000 Imagenette photographs, 150 epochs: kNN 29.0 % untrained, 41.6 % after; linear probe 40.0 %, 51.2 %
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
        name="mae_tiny64",
        data=DataConfig(train="train/*.tar", val="val/*.tar", image_size=(64, 64), batch_size=128, workers=1),
        backbone=ViTConfig("tiny", patch_size=8, width=192, depth=6, heads=3),
        objective=PixelMAEConfig(decoder_width=128, decoder_depth=2, decoder_heads=4),
        mask=Uniform(FixedRatio(0.75)),
        epochs=100,
        optim=OptimConfig(base_lr=1.5e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=200),
        tracking=TrackingConfig(log_every=20, panels_every=400),
        evaluation=EvaluationConfig(every_steps=200, methods=("knn", "linear")),
    )

"""MaskAlign on the photographs that ship inside scikit-image, with the encoder of `make demo` as its teacher.

Command:   lacuna train configs/demo.py, then lacuna train configs/maskalign_demo.py
Hardware:  two CPU cores, about four minutes each
Expected:  one run of steps=400, taught by a demo run of steps=400: loss 2.5 to 0.025, kNN 40.9 % (35.7 % untrained, the
           teacher 44.0 %) on 504 crops of held-out parts; the 800 steps of both have not been measured
"""

from masking.ratio import FixedRatio
from masking.strategies.guided import Guided
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.teachers import TeacherConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="maskalign_demo",
        data=DataConfig(train="embedded", image_size=(64, 64), batch_size=128, crop_scale=(0.3, 1.0), workers=1),
        backbone=ViTConfig("tiny", patch_size=8, width=192, depth=6, heads=3),
        objective=MaskAlignConfig(teacher=TeacherConfig("runs/demo")),
        mask=Guided(FixedRatio(0.7)),
        steps=800,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.995),
        checkpoint=CheckpointConfig(every_steps=200),
        tracking=TrackingConfig(log_every=20, panels_every=100),
        evaluation=EvaluationConfig(every_steps=200, max_images=2000),
    )

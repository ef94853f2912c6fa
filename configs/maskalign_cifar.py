"""MaskAlign for images of 32 x 32 pixels such as CIFAR's: the encoder of configs/mae_cifar.py, which is its teacher too.

Command:   lacuna train configs/mae_cifar.py data.train='shards/*.tar'
           lacuna train configs/maskalign_cifar.py data.train='shards/*.tar'
Hardware:  one CPU core, or any GPU
Expected:  50,000 images of CIFAR-10, steps=150, taught by a run of mae_cifar.py of steps=300: the loss falls from 2.14 to 0.054;
           kNN 25.0 % (26.5 % untrained, the teacher 29.9 %), too short to say anything of features
Teacher:   any run on images of this size: objective.teacher.model=runs/NAME; the student's own average, with nothing to
           train first, by objective.teacher.model=ema
"""

from masking.ratio import FixedRatio
from masking.strategies.guided import Guided
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.teachers import TeacherConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="maskalign_cifar",
        data=DataConfig(train="shards/*.tar", image_size=(32, 32), batch_size=128, workers=1),
        backbone=ViTConfig("tiny", patch_size=4, width=192, depth=6, heads=3),
        objective=MaskAlignConfig(teacher=TeacherConfig("runs/mae_cifar")),
        mask=Guided(FixedRatio(0.7)),
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=500),
    )

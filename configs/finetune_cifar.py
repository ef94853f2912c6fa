"""The encoder of configs/mae_cifar.py learning classes of images of 32 x 32 pixels: MAE's recipe, with milder augmentation.

Command:   lacuna finetune configs/finetune_cifar.py init_from=runs/mae_cifar data.train='train/*.tar' data.val='val/*.tar'
           lacuna finetune --from-scratch configs/finetune_cifar.py name=scratch optim.layer_decay=none ... (its baseline)
Hardware:  one CPU core, or any GPU
Expected:  not measured at this size; a smaller encoder in 200 steps: 43.4 %, and 35.1 % from scratch
           (one run each, docs/finetune.md)
"""

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="finetune_cifar",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(32, 32),
            batch_size=128,
            crop_scale=(0.4, 1.0),
            mixup=0.8,
            cutmix=1.0,
            workers=1,
        ),
        backbone=ViTConfig("tiny", patch_size=4, depth=6, positions="learned", drop_path=0.1),
        objective=SupervisedConfig(num_classes=10, label_smoothing=0.1, pool="norm_of_mean", head_init_std=2e-5),
        mask=None,
        epochs=20,
        optim=OptimConfig(base_lr=2e-3, betas=(0.9, 0.999), layer_decay=0.75, final_lr_ratio=1e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(panels_every=None),
    )

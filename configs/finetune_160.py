"""A ViT-S/16 learning the 10 classes of photographs of 160 x 160 pixels, such as Imagenette's: MAE's recipe for few images.

Command:   lacuna finetune configs/finetune_160.py init_from=runs/first data.train='train/*.tar' data.val='val/*.tar'
           (init_from: a MAE of the same encoder: configs/mae_vitb16.py backbone.size=small data.image_size=160,160)
Hardware:  one GPU
Expected:  not measured; no paper has it. Positions of an encoder pretrained at another size are resized
"""

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="finetune_160",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(160, 160),
            batch_size=256,
            crop_scale=(0.2, 1.0),
            rand_augment="rand-m9-mstd0.5-inc1",
            erase_prob=0.25,
            mixup=0.8,
            cutmix=1.0,
            workers=4,
        ),
        backbone=ViTConfig("small", patch_size=16, positions="learned", drop_path=0.1),
        objective=SupervisedConfig(num_classes=10, label_smoothing=0.1, pool="norm_of_mean", head_init_std=2e-5),
        mask=None,
        epochs=100,
        optim=OptimConfig(base_lr=1e-3, betas=(0.9, 0.999), layer_decay=0.75, warmup=0.05, final_lr_ratio=1e-3),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(panels_every=None),
    )

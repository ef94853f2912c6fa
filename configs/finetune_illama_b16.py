"""iLLaMA-B/16, pretrained by configs/illama_b16_mae.py, learning the classes of ImageNet-1k with its causal mask kept: MAE's recipe,
and the class token behind the patches, which sees all of them in spite of the mask. docs/finetune.md has the other masks.

Command:   srun lacuna finetune configs/finetune_illama_b16.py init_from=runs/first data.train='train/*.tar' data.val='val/*.tar'
Hardware:  any number of GPUs; 1024 / (GPUs x engine.accumulation) images must fit on one
Expected:  not measured; iLLaMA's authors do not pretrain, and reach 81.6 % from scratch (configs/illama_b16_supervised.py)
"""

from pretrain.backbones.illama import IllamaConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="finetune_illama_b16",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(224, 224),
            batch_size=1024,
            crop_scale=(0.08, 1.0),
            rand_augment="rand-m9-mstd0.5-inc1",
            erase_prob=0.25,
            mixup=0.8,
            cutmix=1.0,
            workers=8,
        ),
        backbone=IllamaConfig("base", patch_size=16, drop_path=0.1, soft_mask=None),
        objective=SupervisedConfig(num_classes=1000, label_smoothing=0.1, head_init_std=2e-5),
        mask=None,
        epochs=100,
        optim=OptimConfig(base_lr=5e-4, betas=(0.9, 0.999), layer_decay=0.65, warmup=0.05, final_lr_ratio=1e-6 / 2e-3),
        checkpoint=CheckpointConfig(every_steps=1000),
        tracking=TrackingConfig(panels_every=None),
    )

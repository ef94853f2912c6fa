"""ViT-B/16, pretrained by MAE, learning the classes of ImageNet-1k by MAE's own recipe (He et al., "Masked Autoencoders Are
Scalable Vision Learners", table 9, with the base rate and layer decay of the authors' released code).

Command:   srun lacuna finetune configs/finetune_vitb16.py init_from=runs/first data.train='train/*.tar' data.val='val/*.tar'
Hardware:  any number of GPUs; 1024 / (GPUs x engine.accumulation) images must fit on one
Expected:  83.6 % top-1 after 1600 epochs of pretraining (paper, table 3); 83.57 % in the mean of the four seeds of the
           authors' released code, deviation 0.08. Not run here. Two things differ from that code: every image is mixed
           by its own share, and the norm of the mean begins as the encoder's
"""

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="finetune_vitb16",
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
        backbone=ViTConfig("base", patch_size=16, positions="learned", drop_path=0.1),
        objective=SupervisedConfig(num_classes=1000, label_smoothing=0.1, pool="norm_of_mean", head_init_std=2e-5),
        mask=None,
        epochs=100,
        optim=OptimConfig(
            base_lr=5e-4, betas=(0.9, 0.999), layer_decay=0.65, warmup=5 / 100, final_lr_ratio=1e-6 / 2e-3
        ),
        checkpoint=CheckpointConfig(every_steps=1000),
        tracking=TrackingConfig(panels_every=None),
    )

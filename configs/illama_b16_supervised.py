"""iLLaMA-B/16 learning the classes of ImageNet-1k from scratch, by the recipe of its authors (Wang et al., "Adapting LLaMA
Decoder to Vision Transformer", the appendix' table of the Base model): mixup, cutmix, RandAugment, erased rectangles, and a
mask that becomes causal step by step over the first 25 epochs.

Command:   srun lacuna train configs/illama_b16_supervised.py data.train='train/*.tar' data.val='val/*.tar' name=first
Hardware:  any number of GPUs; 4096 / (GPUs x engine.accumulation) images must fit on one
Expected:  81.6 % top-1 (paper, best epoch on the validation set). For tiny and small it gives 75.0 and 79.9 %, with other
           drop path, mixing, warm-up and alpha. Of Base on the way there: 81.7 % without a mask, 80.6 % with a causal one,
           before rotary positions, this augmentation and the soft mask. Not run here; the authors train in fp32
           (engine.precision=fp32)
"""

from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.soft_mask import SoftMask
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="illama_b16_supervised",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(224, 224),
            batch_size=4096,
            crop_scale=(0.08, 1.0),
            rand_augment="rand-m9-mstd0.5-inc1",
            erase_prob=0.25,
            mixup=0.95,
            cutmix=1.0,
            workers=8,
        ),
        backbone=IllamaConfig("base", patch_size=16, drop_path=0.4, soft_mask=SoftMask("linear", 25, "epochs")),
        objective=SupervisedConfig(num_classes=1000, label_smoothing=0.1),
        mask=None,
        epochs=300,
        optim=OptimConfig(base_lr=2.5e-4, betas=(0.9, 0.999), warmup=50 / 300, final_lr_ratio=1e-6 / 4e-3),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=25_000),
        tracking=TrackingConfig(panels_every=None),
    )

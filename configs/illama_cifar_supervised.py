"""iLLaMA trained as its authors train it, on the class of the image, for images of 32 x 32 pixels such as CIFAR's; its mask
becomes causal in one step, half way through. Its baseline is configs/vit_cifar_supervised.py.

Command:   lacuna train configs/illama_cifar_supervised.py data.train='train/*.tar' data.val='val/*.tar'
Hardware:  one CPU core, or any GPU
Expected:  not measured at this size. Seen at width 64, 4 blocks and 500 steps of 64 images: 41.6 % by its own head, 41.1 % by a
           linear probe (benchmarks/results/illama-variants.md)
"""

from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.soft_mask import SoftMask
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="illama_cifar_supervised",
        data=DataConfig(
            train="shards/*.tar", image_size=(32, 32), batch_size=128, crop_scale=(0.4, 1.0), workers=1
        ),
        backbone=IllamaConfig("tiny", patch_size=4, depth=6, soft_mask=SoftMask("constant", 1 / 2)),
        objective=SupervisedConfig(num_classes=10),
        mask=None,
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, betas=(0.9, 0.999), final_lr_ratio=1e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=None),
    )

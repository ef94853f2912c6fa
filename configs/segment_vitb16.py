"""ViT-B/16, pretrained by MAE, segmenting ADE20K by a UPerNet, as mmsegmentation publishes it for MAE: 512 pixels, batch 16,
160,000 steps, levels after blocks 4, 6 and 8 and from the encoder's end (He et al., "Masked Autoencoders Are Scalable
Vision Learners", table 5, whose authors follow BEiT's code).

Command:   srun lacuna finetune configs/segment_vitb16.py init_from=runs/first data.train='train/*.tar' data.val='val/*.tar'
Hardware:  any number of GPUs; 16 / (GPUs x engine.accumulation) images must fit on one
Expected:  48.1 mIoU after 1600 epochs of pretraining (paper, table 5; mmsegmentation: 48.13). Not run here, and these differ:
           crops are random resized crops, whole images are squeezed to 512 x 512 and not slid over, positions are one table
           and not relative, the rate follows a half cosine and not a line, norms are GroupNorm, there is no auxiliary head
           and no change of colours
"""

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.segment import SegmentConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="segment_vitb16",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(512, 512),
            batch_size=16,
            crop_scale=(0.25, 1.0),
            maps="seg.png",
            map_first=1,
            map_void=0,
            workers=8,
        ),
        backbone=ViTConfig("base", patch_size=16, positions="learned", drop_path=0.1),
        objective=SegmentConfig(pixel_classes=150, head_width=768, head_drop=0.1, layers=(3, 5, 7)),
        mask=None,
        steps=160_000,
        optim=OptimConfig(base_lr=1e-4 * 256 / 16, betas=(0.9, 0.999), layer_decay=0.65, warmup=1500 / 160_000),
        checkpoint=CheckpointConfig(every_steps=2000),
        tracking=TrackingConfig(panels_every=None),
    )

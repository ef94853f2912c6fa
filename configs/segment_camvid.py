"""The encoder of configs/mae_tiny64.py segmenting street scenes: 11 classes of CamVid (Brostow et al., 2008), frames of 3:4
at a third of their size. Shards with label maps: docs/segment.md.

Command:   lacuna finetune configs/segment_camvid.py init_from=runs/mae_tiny64 data.train='train/*.tar' data.val='val/*.tar'
           lacuna finetune --from-scratch configs/segment_camvid.py name=scratch optim.layer_decay=none ... (its baseline)
Hardware:  one CPU core, or any GPU
Expected:  not measured
"""

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.segment import SegmentConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="segment_camvid",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(96, 128),
            batch_size=16,
            crop_scale=(0.3, 1.0),
            crop_aspect=(1.2, 1.5),
            maps="seg.png",
            map_void=11,
            map_names=(
                "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian",
                "bicyclist",
            ),
            workers=1,
        ),
        backbone=ViTConfig("tiny", patch_size=8, width=192, depth=6, heads=3, positions="learned"),
        objective=SegmentConfig(pixel_classes=11, head_width=64, head_drop=0.1),
        mask=None,
        epochs=60,
        optim=OptimConfig(base_lr=4e-3, betas=(0.9, 0.999), layer_decay=0.75, warmup=0.1, clip_norm=1.0),
        checkpoint=CheckpointConfig(every_steps=200),
        tracking=TrackingConfig(panels_every=None),
    )  # fmt: skip

"""MTO-R on SimMIM, ViT-B/16: configs/simmim_vitb16.py with MTO-R, and half its epochs.

Command:   srun lacuna train configs/mto_r_simmim_vitb16.py data.train='shards/*.tar' name=first
Hardware:  as configs/simmim_vitb16.py; how much longer a step takes is not measured
Expected:  not known, and not run here. Of the published method it is claimed that about half the epochs reach what the
           baseline reaches; whether that holds of this reconstruction is open. Its control is simmim_vitb16.py, epochs=400

Known (abstract and summaries of Choi et al., ECCV 2024): hidden tokens that are semantically inconsequential are kept
out of the weights of visible ones, losses named L_spa, L_e and L_r enforce a singular mask token by depth, SimMIM and
ViT-B are in its tables. Unknown: every formula, weight, schedule, and which blocks. Reconstructed: all settings below
`mto`, as docs/mto-r.md explains.
"""

from masking.ratio import FixedRatio
from masking.strategies.coarse import Coarse
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.mto_r import MtoRConfig
from pretrain.objectives.simmim import SimMIMConfig


def config() -> Config:
    return Config(
        name="mto_r_simmim_vitb16",
        data=DataConfig(
            train="shards/*.tar",
            image_size=(224, 224),
            batch_size=2048,
            crop_scale=(0.67, 1.0),
            crop_aspect=(3 / 4, 4 / 3),
            workers=8,
        ),
        backbone=ViTConfig("base", patch_size=16, layer_scale=0.1, drop_path=0.1),
        objective=SimMIMConfig(),
        mask=Coarse(FixedRatio(30 / 49), unit=2),
        epochs=400,
        optim=OptimConfig(base_lr=5e-5, betas=(0.9, 0.999), weight_decay=0.05, warmup=10 / 800, clip_norm=5.0),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=50_000),
        mto=MtoRConfig(),
    )

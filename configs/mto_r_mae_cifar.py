"""MTO-R on MAE for images of 32 x 32 pixels such as CIFAR's: configs/mae_cifar.py with a decoder of 4 blocks, in which
MTO-R acts; with 2 its depth weights would be 1 and 0. Its baseline is this file with mto=none.

Command:   lacuna train configs/mto_r_mae_cifar.py data.train='shards/*.tar'
           or, with photographs that need no download: data.train=embedded
Hardware:  one CPU core, or any GPU
Expected:  50,000 images of CIFAR-10: in a run of steps=100 the loss falls from 2.23 to 0.85 (loss_pixel to 0.76), and H rises
           from 0.871 to 0.995 in the decoder's first two blocks, from 0.64 to 0.90 in its last; kNN 22.4 % (26.5 % untrained):
           too short to say anything of features

Known (abstract and summaries of Choi et al., ECCV 2024): MAE is among its baselines. Unknown: where the method acts there,
since MAE's encoder has no mask tokens, and every formula. Reconstructed: it acts in the decoder, the only place left,
which is thrown away after pretraining: expect less of it than with SimMIM. docs/mto-r.md explains the rest.
"""

from masking.ratio import FixedRatio
from masking.strategies.uniform import Uniform
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.objectives.mto_r import MtoRConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.tracking.settings import TrackingConfig


def config() -> Config:
    return Config(
        name="mto_r_mae_cifar",
        data=DataConfig(train="shards/*.tar", image_size=(32, 32), batch_size=128, workers=1),
        backbone=ViTConfig("tiny", patch_size=4, width=192, depth=6, heads=3),
        objective=PixelMAEConfig(decoder_width=128, decoder_depth=4, decoder_heads=4),
        mask=Uniform(FixedRatio(0.75)),
        epochs=50,
        optim=OptimConfig(base_lr=2e-3, clip_norm=1.0),
        engine=EngineConfig(ema_decay=0.998),
        checkpoint=CheckpointConfig(every_steps=500),
        tracking=TrackingConfig(log_every=20, panels_every=1000),
        mto=MtoRConfig(),
    )

"""MaskAlign, ViT-B/16 taught by CLIP's ViT-B/16, as in Xue et al., CVPR 2023 (arXiv 2211.08887).

Command:   srun lacuna train configs/maskalign_vitb16.py data.train='shards/*.tar' objective.teacher.weights=clip_vitb16.safetensors
Hardware:  any number of GPUs; 1024 / (GPUs x engine.accumulation) images must fit on one
Teacher:   a file with the weights of OpenAI's CLIP ViT-B/16 under timm's or OpenCLIP's names; a folder with Hugging Face's
           does too: objective.teacher.model=clip-vit-base-patch16 objective.teacher.weights=none
Recipe:    the authors' code: 70 % hidden, kept in proportion to the attention of the teacher's class token; its last five
           blocks whitened, linear adaptors, a learned matrix over the student's twelve; AdamW 1.5e-4 per 256 images, betas
           0.9 and 0.95, decay 0.05, batch 1024, 20 of 200 epochs of warm-up, cosine to 1e-5, drop path 0.1, no clipping
Expected:  published, ImageNet-1k fine-tuning (100 epochs): 85.4 %; ViT-L/16 with drop path 0.2: 86.5 %, and 87.4 % taught by
           CLIP's ViT-L/14 at 196 pixels (objective.teacher.model=vit_large_patch14_clip_224.openai). Not run here

The paper's own tables could not be read: these are the numbers of the authors' model card. What differs is in
docs/align-with-a-teacher.md.
"""

from masking.ratio import FixedRatio
from masking.strategies.guided import Guided
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import CheckpointConfig, OptimConfig
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.teachers import TeacherConfig


def config() -> Config:
    return Config(
        name="maskalign_vitb16",
        data=DataConfig(train="shards/*.tar", image_size=(224, 224), batch_size=1024, crop_scale=(0.2, 1.0), workers=8),
        backbone=ViTConfig("base", patch_size=16, drop_path=0.1),
        objective=MaskAlignConfig(
            teacher=TeacherConfig("vit_base_patch16_clip_224.openai", weights="clip_vitb16.safetensors", compile=True)
        ),
        mask=Guided(FixedRatio(0.7)),
        epochs=200,
        optim=OptimConfig(base_lr=1.5e-4, warmup=0.1, final_lr_ratio=1 / 60),
        checkpoint=CheckpointConfig(every_steps=1000, milestone_every=25_000),
    )

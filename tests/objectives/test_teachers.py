"""pretrain/objectives/teachers.py and the files beside it: every source says what its own maker's code says."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.teacher_encoders import OwnEncoder
from pretrain.objectives.teachers import FrozenTeacher, TeacherConfig, frozen_teacher
from pretrain.patches import normalize
from pretrain.timm_shim import import_timm
from tests.engine.load_cases import CONFIG, save
from tests.export.cases import SMALL, encoder, written
from tests.objectives import huggingface_cases as hf
from tests.objectives.align_cases import GRID, aligned, folder_of, loss_of, masks, photographs, small_teacher, student
from tests.objectives.plain import MEAN, STD


def say(config, images, grid, levels, importance="class"):
    return frozen_teacher(config, grid)(images, levels, importance, torch.float32)


def timms(model, pixels, levels):
    """timm's own states after blocks levels, and its last softmax, with nothing fused."""
    seen, weights = {}, []
    for index, block in enumerate(model.blocks):
        block.attn.fused_attn = False
        block.register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    model.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, inputs, __: weights.append(inputs[0]))
    with torch.no_grad():
        model.forward_features(pixels)
    return [seen[level] for level in levels], weights[0]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 3}),
        ("vit_base_patch16_clip_quickgelu_224", {"depth": 2, "embed_dim": 48, "num_heads": 4}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 224}),
    ],
)
def test_states_and_class_attention_are_timms_own(tmp_path, name, args):
    path, model = folder_of(tmp_path, name, mean=(0.4,) * 3, std=(0.3,) * 3, **args)
    patch, depth = model.patch_embed.patch_size[0], args["depth"]
    side = 224 // patch
    images = photographs(2, 224)
    lesson = say(TeacherConfig(path), images, Grid(side, side), range(depth))
    states, attention = timms(model, normalize(images, (0.4,) * 3, (0.3,) * 3), range(depth))
    front = model.num_prefix_tokens
    for got, want in zip(lesson.layers, states, strict=True):
        without_registers = torch.cat([want[:, :1], want[:, front:]], 1)
        torch.testing.assert_close(got, without_registers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lesson.importance, attention[:, :, 0, front:].mean(1), rtol=1e-4, atol=1e-7)
    received = say(TeacherConfig(path), images, Grid(side, side), [0], "received").importance
    torch.testing.assert_close(received, attention[:, :, front:, front:].mean((1, 2)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["clip", "vit", "dinov2"])
def test_hugging_faces_folders_are_read_without_its_library(tmp_path, kind):
    state = hf.weights(kind, patch=8, side=64)
    config = TeacherConfig(hf.folder(tmp_path / kind, kind, state, patch=8, side=64))
    images = photographs(2)
    lesson = say(config, images, GRID, range(hf.DEPTH))
    states, attention = hf.states(kind, state, normalize(images, (0.4,) * 3, (0.2,) * 3))
    for got, want in zip(lesson.layers, states, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lesson.importance, attention[:, :, 0, 1:].mean(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_name_of_timms_takes_its_weights_from_a_file(tmp_path, suffix):
    model = import_timm().create_model("vit_tiny_patch16_224", num_classes=3)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"model": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    encoder = frozen_teacher(TeacherConfig("vit_tiny_patch16_224", str(path)), Grid(14, 14)).encoder
    found = encoder.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items() if "head" not in name)


def test_random_weights_are_the_same_everywhere_and_leave_torchs_draws_alone():
    config = TeacherConfig("vit_tiny_patch16_224", "random")
    torch.manual_seed(5)
    first = frozen_teacher.__wrapped__(config, Grid(4, 4))
    drawn = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(torch.rand(()), drawn)
    second = frozen_teacher.__wrapped__(config, Grid(4, 4))
    pairs = zip(first.encoder.state_dict().values(), second.encoder.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert frozen_teacher(config, Grid(4, 4)) is frozen_teacher(config, Grid(4, 4))


def test_a_teacher_of_other_patches_sees_the_crop_on_the_students_grid(tmp_path):
    """L/14 at 196 pixels: 16 x 16 positions become 14 x 14, a ramp stays a ramp, the class token's stays as it is."""
    args = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 224}
    path, model = folder_of(tmp_path, "vit_large_patch14_clip_224", **args)
    state = model.state_dict()
    rows = torch.arange(16.0).repeat_interleave(16) + 2 * torch.arange(16.0).repeat(16)
    state["pos_embed"][0, 1:] = rows[:, None]
    kept = state["pos_embed"][0, 0].clone()
    save_file(state, tmp_path / "model.safetensors")
    encoder = frozen_teacher(TeacherConfig(path), Grid(14, 14)).encoder
    images = photographs(2, 224)
    assert encoder.pixels(images).shape == (2, 3, 196, 196)
    lesson = say(TeacherConfig(path), images, Grid(14, 14), [1])
    assert lesson.layers[0].shape == (2, 197, 48) and lesson.importance.shape == (2, 196)
    table = encoder.model.pos_embed[0]
    assert torch.equal(table[0], kept)
    grid = table[1:, 0].reshape(14, 14)[3:-3, 3:-3]
    for dim, slope in ((0, 16 / 14), (1, 2 * 16 / 14)):  # antialiased bicubic weights ripple by a per cent
        torch.testing.assert_close(grid.diff(dim=dim), torch.full_like(grid.diff(dim=dim), slope), rtol=0.01, atol=0)


def test_a_crop_is_resized_as_pillow_does_and_normalised_as_the_teacher_wants(tmp_path):
    from PIL import Image

    args = {"embed_dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 64}
    teacher = TeacherConfig(folder_of(tmp_path, mean=(0.5,) * 3, std=(0.25,) * 3, **args)[0])
    images = photographs(1, 112)
    got = frozen_teacher(teacher, GRID).encoder.pixels(images) * 0.25 + 0.5
    want = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
    want = torch.from_numpy(torch.frombuffer(bytearray(want.tobytes()), dtype=torch.uint8).numpy()).reshape(64, 64, 3)
    assert (got[0].permute(1, 2, 0).clamp(0, 1) * 255 - want).abs().max() < 1.01  # Pillow rounds, twice


def test_a_run_teaches_with_its_average_or_its_weights_on_any_grid(tmp_path):
    weights = save(tmp_path / "run", 3, ema=True)
    own = Grid(2, 3)
    averaged = frozen_teacher(TeacherConfig(str(tmp_path / "run")), own).encoder
    plain = frozen_teacher(TeacherConfig(str(tmp_path / "run"), "model"), own).encoder
    name = "blocks.1.attn.qkv.weight"
    assert torch.equal(plain.backbone.state_dict()[name], weights[f"backbone.{name}"])
    torch.testing.assert_close(averaged.backbone.state_dict()[name], weights[f"backbone.{name}"] + 0.5)
    other = frozen_teacher(TeacherConfig(str(tmp_path / "run")), Grid(4, 4))
    lesson = other(photographs(2), [0, 1], "class", torch.float32)  # 64 x 64 pixels for patches of 16
    assert lesson.layers[1].shape == (2, 17, 32)


def test_a_run_of_illama_teaches_on_its_own_grid_alone(tmp_path):
    config = dataclasses.replace(CONFIG, backbone=IllamaConfig("tiny", patch_size=16, width=32, depth=2, heads=2))
    save(tmp_path / "run", 3, config=config)
    teacher = TeacherConfig(str(tmp_path / "run"), importance="similarity")
    lesson = say(teacher, torch.zeros(2, 3, 32, 48, dtype=torch.uint8), Grid(2, 3), [1], "similarity")
    assert lesson.layers[0].shape == (2, 7, 32)
    with pytest.raises(ConfigError, match="an encoder of 2x3 patches whose places cannot be resized, and the student"):
        frozen_teacher(teacher, Grid(4, 4))


def test_an_export_of_ours_is_the_encoder_it_came_from(tmp_path):
    loaded = encoder(dataclasses.replace(CONFIG.backbone, patch_size=16, layer_scale=0.5, **SMALL), (64, 64))
    written(loaded, tmp_path)
    images = photographs(2)
    for model in (str(tmp_path), str(tmp_path / "model.safetensors")):
        got = say(TeacherConfig(model), images, Grid(4, 4), [0, 1])
        want = FrozenTeacher(OwnEncoder(loaded.backbone), False)(images, [0, 1], "class", torch.float32)
        for one, other in zip((*got.layers, got.importance), (*want.layers, want.importance), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_bf16_run_has_a_bf16_teacher_beside_the_float32_one(tmp_path):
    teacher = frozen_teacher(small_teacher(tmp_path), GRID)
    images = photographs(2)
    exact, rounded = (teacher(images, [1], "class", dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rounded.layers[0].dtype == torch.bfloat16 and rounded.importance.dtype == torch.float32
    torch.testing.assert_close(rounded.layers[0].float(), exact.layers[0], rtol=0.1, atol=0.1)
    assert next(teacher.encoder.parameters()).dtype == torch.float32


def test_the_students_average_moves_by_its_share_and_not_in_a_skipped_step():
    backbone = student(depth=2, drop_path=0.5)
    objective = aligned(TeacherConfig(ema_decay=0.9), backbone).train()
    before = {name: value.clone() for name, value in objective.state_dict().items() if name.startswith("ema.")}
    assert not objective.ema.encoder.training and not list(objective.ema.parameters())
    assert objective.moving() == {name for name, value in before.items() if value.is_floating_point()}
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1)
    objective.after_update(backbone, torch.ones(()))
    assert all(torch.equal(objective.state_dict()[name], value) for name, value in before.items())
    objective.after_update(backbone, torch.zeros(()))
    trained = {f"ema.encoder.backbone.{name}" for name, _ in backbone.named_parameters()}
    for name, value in before.items():
        moved = 0.1 if name in trained else 0.0
        torch.testing.assert_close(objective.state_dict()[name], value + moved if moved else value)


def test_the_students_average_does_not_change_with_what_is_dropped_at_random():
    backbone = student(depth=2, drop_path=0.5)
    objective = aligned(TeacherConfig(), backbone).train()
    images = photographs(2)
    first, second = (objective.target(images) for _ in range(2))
    assert torch.equal(first.layers[1], second.layers[1])
    assert loss_of(objective, backbone, images, masks(2, 19)).isfinite()


def refused(tmp_path, config, says, backbone=None, **settings):
    with pytest.raises(ConfigError, match=says) as error:
        checked_and_built(MaskAlignConfig(config, **settings), backbone or student())
    assert "\n" not in str(error.value)


def checked_and_built(objective, backbone):
    objective.check()
    return objective.build(backbone)


def test_what_cannot_teach_is_refused_in_a_sentence(tmp_path):
    model = import_timm().create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "empty").mkdir()
    tiny = "vit_tiny_patch16_224"
    refused(tmp_path, TeacherConfig("vit_tinny_patch16_224"), "nor a model of timm's; did you mean 'vit_tiny_patch16_2")
    refused(tmp_path, TeacherConfig(tiny), "needs objective.teacher.weights: a safetensors file")
    refused(tmp_path, TeacherConfig(tiny, "nowhere.pt"), "nowhere.pt does not exist; give the file")
    refused(tmp_path, TeacherConfig(tiny, str(tmp_path / "other.safetensors")), "other.safetensors do not fit object")
    refused(tmp_path, TeacherConfig(tiny, str(tmp_path / "code.pt")), "code in a file is never run; give a safetensors")
    refused(tmp_path, TeacherConfig("resnet18", "random"), "is a ResNet; a teacher is a plain ViT")
    refused(tmp_path, TeacherConfig(str(tmp_path / "empty")), "empty/config.json cannot be read")
    refused(tmp_path, TeacherConfig(weights="x.pt"), "weights=x.pt has no effect: the teacher is the student's average")
    refused(tmp_path, TeacherConfig(tiny, "random", ema_decay=0.9), "ema_decay=0.9 has no effect")
    refused(tmp_path, TeacherConfig(ema_decay=1.5), "it must be above 0 and below 1")
    bare = student(class_token=False)
    refused(tmp_path, TeacherConfig(), "the teacher ema cannot tell that; it gives received and similarity", bare)
    wide = dataclasses.replace(CONFIG.backbone, patch_size=8).build(GRID, 4, (0.5,) * 4, (0.2,) * 4)
    refused(tmp_path, small_teacher(tmp_path / "rgb"), "sees 3 channels and data.in_chans=4", wide)
    assert MaskAlignConfig(TeacherConfig(importance="received")).build(bare)


def test_an_average_needs_whole_weights(tmp_path):
    from pretrain.checks import check

    engine = dataclasses.replace(CONFIG.engine, zero_stage=3)
    config: Config = dataclasses.replace(CONFIG, objective=MaskAlignConfig(), engine=engine)
    with pytest.raises(ConfigError, match="no process has the student's weights whole; use engine"):
        check(config)
    check(dataclasses.replace(config, objective=MaskAlignConfig(TeacherConfig("runs/first"))))


def test_means_and_deviations_are_not_rounded_with_the_weights(tmp_path):
    teacher = frozen_teacher(small_teacher(tmp_path), GRID)
    teacher(photographs(1), [0], "class", torch.bfloat16)
    rounded = next(iter(teacher._copies.values()))
    assert torch.equal(rounded.pixels(photographs(1)), teacher.encoder.pixels(photographs(1)))
    torch.testing.assert_close(rounded.pixels(photographs(1)), normalize(photographs(1), MEAN, STD))

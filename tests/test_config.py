"""Configs: typed overrides, JSON round trip, and hundreds of settings that must be refused in one useful sentence."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from masking.strategies.guided import Guided
from pretrain.backbones.soft_mask import SoftMask
from pretrain.checks import check
from pretrain.config import Config, apply_overrides, flatten, load_config, read_config, to_json, write_config
from pretrain.config_help import render, settings_of
from pretrain.engine import fsops
from pretrain.errors import ConfigError
from pretrain.objectives.pixel import PixelMAEConfig
from tests.bad_configs import CONFIGS, NO_FILE

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "configs" / "tiny_cpu.py"

BAD_VALUES = {
    "seed": ["-1", "1.5", "none", "x"],
    "steps": ["0", "-5", "2.5", "many"],
    "epochs": ["0", "-1", "x", "nan"],
    "name": ["", "a/b", "../x", ".hidden", "a b", "x" * 200],
    "data.image_size": ["63", "64", "64,63", "0,64", "-64,64", "64,64,64", "a,b", "8.5,8"],
    "data.in_chans": ["0", "-1", "4", "1.5"],
    "data.mean": ["0.5", "0.5,0.5", "a,b,c"],
    "data.std": ["0,0,0", "1,1,-1", "1,1"],
    "data.batch_size": ["0", "-64", "6.5", "sixty"],
    "data.crop_scale": ["0,1", "0.5,1.5", "0.9,0.2", "0.5", "a,b"],
    "data.crop_aspect": ["0,1", "2,1", "1"],
    "data.flip_prob": ["-0.1", "1.1", "x"],
    "data.crops_per_decode": ["0", "1.5"],
    "data.apply_exif": ["2", "maybe", "yes"],
    "data.max_pixels": ["0", "-1", "1e6"],
    "data.workers": ["-1", "two", "1.5"],
    "data.prefetch": ["0", "-2"],
    "data.timeout_s": ["0", "-1", "soon"],
    "data.lanes": ["0", "-1", "1.5"],
    "data.block": ["0", "-1"],
    "data.error_ratio": ["-0.1", "1.5"],
    "data.error_run": ["0", "-1"],
    "data.cache_gb": ["0", "-1"],
    "backbone.size": ["gigantic", "B", "1"],
    "backbone.patch_size": ["0", "-8", "7", "128", "8.0"],
    "backbone.class_token": ["1", "maybe"],
    "backbone.registers": ["-1", "0.5"],
    "backbone.positions": ["rope", "1"],
    "backbone.drop_path": ["-0.1", "1.0", "x"],
    "backbone.width": ["0", "97", "-96"],
    "backbone.depth": ["0", "-1", "1.5"],
    "backbone.heads": ["0", "5", "-3"],
    "objective.decoder_width": ["0", "63", "-64"],
    "objective.decoder_depth": ["0", "-1"],
    "objective.decoder_heads": ["0", "5"],
    "objective.norm_pixels": ["2", "per-patch"],
    "objective.predict_ratio": ["0", "-0.5", "1.5"],
    "objective.decoder_weights": ["-0.1", "1.5", "0,2", "1,0.5,0", "x", "nan"],
    "mask.ratio.hidden": ["0", "1", "0.999", "1.5", "-0.75", "x"],
    "optim.base_lr": ["0", "-1e-3", "fast"],
    "optim.betas": ["0.9", "0.9,1.0", "-0.1,0.9", "a,b"],
    "optim.eps": ["0", "-1"],
    "optim.weight_decay": ["-0.1", "x"],
    "optim.warmup": ["-0.1", "1.1"],
    "optim.final_lr_ratio": ["-0.1", "1.1"],
    "optim.clip_norm": ["0", "-1", "x"],
    "engine.zero_stage": ["4", "-1", "1.0", "one"],
    "engine.precision": ["fp16", "bfloat16", "16"],
    "engine.accumulation": ["0", "-1", "3", "7"],
    "engine.ema_decay": ["0", "1", "1.5", "-0.1"],
    "engine.activation_checkpointing": ["2"],
    "engine.compile": ["2", "maybe"],
    "engine.max_skipped": ["0", "-1"],
    "engine.collective_timeout_s": ["0", "-1"],
    "checkpoint.every_steps": ["0", "-1", "x"],
    "checkpoint.keep": ["0", "1", "-3"],
    "checkpoint.milestone_every": ["0", "-1"],
    "tracking.log_every": ["0", "-1"],
    "tracking.panels_every": ["0"],
    "tracking.panel_images": ["0"],
    "tracking.wandb": ["yes", "disabled"],
    "evaluation.every_steps": ["0", "-1"],
    "evaluation.methods": ["", "svm", "knn,svm"],
    "evaluation.weights": ["both", "teacher"],
    "evaluation.pool": ["max", "token"],
    "evaluation.layer": ["4", "-2", "1.5"],
    "evaluation.k": ["0", "-1"],
    "evaluation.temperature": ["0", "-1"],
    "evaluation.max_images": ["0", "-1"],
}
CASES = [(key, value) for key, values in BAD_VALUES.items() for value in values]


@pytest.fixture(scope="module")
def tiny() -> Config:
    return load_config(TINY)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_passes_its_checks(path: Path) -> None:
    check(load_config(path, NO_FILE.get(path.stem, ())))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_its_json(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}={value[:20]}" for key, value in CASES])
def test_a_bad_value_is_refused_naming_the_key(tiny: Config, key: str, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check(load_config(TINY, [f"{key}={value}"]))
    text = str(refusal.value)
    group, _, leaf = key.rpartition(".")
    assert key in text or leaf in text or group in text, text
    assert "\n" not in text and len(text) < 600


@pytest.mark.parametrize("key", [key for key in flatten(load_config(TINY)) if len(key.rpartition(".")[2]) > 4])
def test_a_misspelt_key_is_refused_with_the_right_one(tiny: Config, key: str) -> None:
    group, dot, leaf = key.rpartition(".")
    wrong = f"{group}{dot}{leaf[:-1]}"
    with pytest.raises(ConfigError, match=f"did you mean '{leaf}'"):
        apply_overrides(tiny, [f"{wrong}=1"])


@pytest.mark.parametrize("key", ["data.crop_aspect", "optim.base_lr", "data.timeout_s", "mask.ratio.hidden"])
def test_infinity_is_no_number(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=.*number"):
        load_config(TINY, [f"{key}={'1,1e999' if 'aspect' in key else '1e999'}"])


def test_a_setting_that_a_component_has_not_is_refused_inside_a_config_file_with_the_right_one(tmp_path: Path) -> None:
    path, text = tmp_path / "mine.py", TINY.read_text()
    path.write_text(text.replace("batch_size=64", "batchsize=64"))
    with pytest.raises(
        ConfigError, match=r"DataConfig has no setting 'batchsize'; did you mean 'batch_size'\?; .*train, val"
    ):
        load_config(path)
    path.write_text(text.replace('train="embedded", ', ""))
    with pytest.raises(
        ConfigError, match=r"missing 1 required positional argument: 'train'; DataConfig has train, val"
    ):
        load_config(path)


def test_overrides_take_the_type_of_their_field(tiny: Config) -> None:
    new = apply_overrides(
        tiny,
        [
            "data.train=a-{000..003}.tar",
            "optim.base_lr=1e-4",
            "data.image_size=32,48",
            "engine.ema_decay=none",
            "engine.compile=false",
            "evaluation.methods=knn,linear",
            "optim.clip_norm=1",
            "name=123",
            "mask.ratio.hidden=0.5",
        ],
    )
    assert new.data.train == "a-{000..003}.tar" and new.optim.base_lr == 1e-4 and new.data.image_size == (32, 48)
    assert new.engine.ema_decay is None and new.engine.compile is False and new.evaluation.methods == ("knn", "linear")
    assert new.optim.clip_norm == 1.0 and isinstance(new.optim.clip_norm, float) and new.name == "123"
    assert new.mask.ratio.hidden == 0.5  # type: ignore[attr-defined]


def test_batch_size_that_the_world_cannot_share_names_the_nearest_that_it_can(tiny: Config) -> None:
    with pytest.raises(ConfigError, match="63 or 66"):
        check(tiny, world_size=3)


def test_a_file_without_config_function_is_one_sentence(tmp_path: Path) -> None:
    for name, text in {"a": "x = 1", "b": "def config(: pass", "c": "def config(): return 3", "d": "1/0"}.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        with pytest.raises(ConfigError, match=path.name):
            load_config(path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "nowhere.py")


def test_a_wrong_type_inside_a_config_file_is_refused(tiny: Config) -> None:
    from pretrain.config import check_types

    with pytest.raises(ConfigError, match=r"data\.batch_size is '64'"):
        check_types(dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, batch_size="64")))  # type: ignore[arg-type]


def test_a_wrong_type_inside_an_objective_is_refused(tiny: Config) -> None:
    from pretrain.config import check_types

    with pytest.raises(ConfigError, match=r"objective\.predict_ratio is '0\.5'"):
        check_types(dataclasses.replace(tiny, objective=PixelMAEConfig(predict_ratio="0.5")))  # type: ignore[arg-type]


def test_what_is_no_objective_is_refused(tiny: Config) -> None:
    from pretrain.config import check_types

    with pytest.raises(ConfigError, match=r"objective is Uniform.* it must be ObjectiveConfig"):
        check_types(dataclasses.replace(tiny, objective=tiny.mask))  # type: ignore[arg-type]


def test_a_mask_guided_by_the_objective_needs_one_that_guides(tiny: Config) -> None:
    class Guiding(PixelMAEConfig):
        gives_guidance = True

    guided = dataclasses.replace(tiny, mask=Guided(guided_by="objective"))
    with pytest.raises(ConfigError, match="PixelMAEConfig gives no importance"):
        check(guided)
    check(dataclasses.replace(guided, objective=Guiding(64, 2, 4)))


def test_json_names_no_type_outside_lacuna(tiny: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"type": "subprocess:Popen", "args": ["touch", "canary"]}')
    with pytest.raises(ConfigError, match="only types of pretrain and masking"):
        read_config(path)
    assert "type" in to_json(tiny)


def test_every_setting_has_a_meaning(tiny: Config) -> None:
    assert not [row.key for row in settings_of(tiny) if len(row.meaning) < 10]
    assert "data.batch_size" in render(tiny)


def test_a_bad_config_is_refused_before_deepspeed_and_with_exit_code_78(tmp_path: Path) -> None:
    program = (
        "import sys; from launch.cli import main; code = main(sys.argv[1:]); "
        "print('deepspeed' in sys.modules, 'webdataset' in sys.modules); sys.exit(code)"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "train",
        str(TINY),
        "data.batch_size=63",
        f"runs_dir={tmp_path}",
        "engine.accumulation=2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 78
    assert done.stdout.strip() == "False False"
    assert done.stderr.startswith("E78 data.batch_size=63") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_needs_neither_torch_nor_a_config() -> None:
    program = "import sys; from launch.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "pretrain from a config" in done.stdout and done.stdout.strip().endswith("False")


def test_a_group_of_settings_that_may_be_off_is_turned_off_and_begins_again_with_its_defaults() -> None:
    config = load_config(ROOT / "configs" / "illama_cifar_mae.py", ["backbone.soft_mask.end=0.5"])
    off = apply_overrides(config, ["backbone.soft_mask=none"])
    assert config.backbone.soft_mask.end == 0.5 and off.backbone.soft_mask is None
    again = apply_overrides(off, ["backbone.soft_mask.kind=linear"])
    assert again.backbone.soft_mask == SoftMask("linear")
    with pytest.raises(ConfigError, match="optim is a group of settings"):
        apply_overrides(config, ["optim=none"])


def test_a_config_that_is_written_again_is_never_half_there(tiny: Config, tmp_path: Path) -> None:
    """Every attempt writes it anew, and may be killed at any operation of that."""
    path, seen = tmp_path / "config.json", []
    write_config(tiny, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsops.HOOK, "at", lambda name, _: seen.append((name, read_config(path) == tiny)))
        write_config(tiny, path)
    assert len(seen) > 5 and all(whole for _, whole in seen)
    (tmp_path / ".config.json.new").write_text("what a kill left")
    write_config(tiny, path)
    assert [item.name for item in tmp_path.iterdir()] == ["config.json"]

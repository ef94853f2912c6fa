"""MTO-R in a run: its precision, its memory and arithmetic, its ramp and figures, and what is refused."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from masking.attention import op
from pretrain.checks import check
from pretrain.config import apply_overrides, check_types, load_config, read_config, write_config
from pretrain.errors import ConfigError
from pretrain.flops import train_flops_per_image
from pretrain.objectives.mto_r import MtoR, MtoRConfig
from tests.objectives.mto_r import (
    BATCH,
    DEPTH,
    HIDDEN,
    LOSSES,
    MAE,
    SIMMIM,
    VISIBLE,
    VIT,
    both,
    build,
    gradients,
    inputs,
    parameters_of,
    run,
)
from tests.syntax import ROOT


@both
def test_checkpointing_changes_no_number_and_counts_no_term_twice(config):
    found = []
    for on in (False, True):
        backbone, objective = build(config, MtoRConfig(rho0=0.8))
        backbone.checkpointing = objective.checkpointing = on
        losses, _ = run(backbone, objective, *inputs())
        grads = torch.autograd.grad(sum(losses.values()).sum(), parameters_of(backbone, objective))
        found.append([*(value.detach() for value in losses.values()), *grads])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@both
def test_half_precision_trains(config):
    backbone, objective = build(config, MtoRConfig())
    backbone.bfloat16(), objective.bfloat16()
    losses, _ = run(backbone, objective, *inputs())
    wanted, _ = run(*build(config, MtoRConfig()), *inputs())
    for name in ("mto_spa", "mto_e", "mto_r"):
        torch.testing.assert_close(losses[name].float(), wanted[name], rtol=0.05, atol=1e-3)
    grads = gradients(sum(losses.values()).sum(), parameters_of(backbone, objective))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's, of its own doing
def test_compiled_it_gives_the_same_losses():
    backbone, objective = build(SIMMIM, MtoRConfig(rho0=0.8))
    want, _ = run(backbone, objective, *inputs())
    got, _ = torch.compile(objective, backend="eager")(backbone, *inputs(), objective.target(inputs()[0]))
    for name, values in want.items():
        torch.testing.assert_close(got[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1.02), (torch.bfloat16, 1.15)])
@both
def test_backward_keeps_at_most_15_per_cent_more(config, dtype, most):
    """In fp32 the projection is kept anyway; bf16 attention on CPUs may keep a copy. Time: benchmarks/objectives.py."""
    wide = dataclasses.replace(VIT, width=192, heads=3)
    config = dataclasses.replace(config, decoder_width=192, decoder_heads=6) if config is MAE else config
    kept = []
    for mto in (None, MtoRConfig()):
        backbone, objective = build(config, mto, wide)
        backbone.to(dtype), objective.to(dtype)
        weights = {p.untyped_storage().data_ptr() for p in (*backbone.parameters(), *objective.parameters())}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:  # noqa: B023
                saved[storage.data_ptr()] = storage.nbytes()  # noqa: B023
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(run(backbone, objective, *inputs())[0].values())
        assert loss.requires_grad
        kept.append(sum(saved.values()))
    assert kept[1] / kept[0] < most


def test_weights_rise_over_the_ramp_and_are_then_there():
    _, objective = build(SIMMIM, MtoRConfig(ramp=0.1))
    images, mask = inputs()
    backbone, _ = build(SIMMIM)
    found = []
    for step in (0, 1, 5, 10, 11, 99):
        followed = objective.at_step(step, 100)
        found.append(followed["mto_ramp"])
        losses, _ = run(backbone, objective, images, mask)
        if step == 0:
            assert all((losses[name] == 0).all() for name in ("mto_spa", "mto_e", "mto_r"))
    assert found == [0.0, 0.1, 0.5, 1.0, 1.0, 1.0]
    assert MtoR(MtoRConfig(ramp=0.0), 3).at_step(0, 100) == {"mto_ramp": 1.0}
    assert build(SIMMIM)[1].at_step(0, 100) == {} and objective.moving() == {"mto.ramp"}


@both
def test_pictures_and_figures_can_be_had_with_it_and_without(config):
    images, mask = inputs()
    found = {}
    for name, mto in (("off", None), ("on", MtoRConfig(rho0=0.8))):
        backbone, objective = build(config, mto)
        assert objective.reconstruct(backbone, images, mask).shape == images.shape
        found[name] = objective.inspect(backbone, images, mask, objective.target(images))["heterogeneity"]
    assert found["off"].keys() == found["on"].keys()
    assert found["off"]["excluded"] == [0, 0, 0] and found["on"]["excluded"] == [12, 6, 0]
    for values in (found[name][key] for name in found for key in ("self_mass", "entropy", "mass", "row")):
        assert len(values) == DEPTH and all(0 <= value <= 1 for value in values)
    # The first block's input is the same with and without, and so is what a mask token is like without its position.
    assert found["off"]["bare"] == found["on"]["bare"]
    assert found["off"]["distance"][0] == pytest.approx(found["on"]["distance"][0], abs=1e-5)
    assert found["on"]["tokens"] == {"seen": VISIBLE + 1, "hidden": HIDDEN}
    for values in found.values():  # what is followed as curves: H of the first and of the last of three blocks
        assert [values["early"], values["late"]] == pytest.approx([1 - values["entropy"][i] for i in (0, -1)])


def test_figures_are_those_of_the_blocks_own_input():
    backbone, objective = build(SIMMIM)
    images, mask = inputs()
    kept = {}
    hook = backbone.blocks[1].attn.register_forward_pre_hook(lambda module, args: kept.update(z=args[0]))
    run(backbone, objective, images, mask)
    hook.remove()
    z = F.normalize(kept["z"], dim=-1)
    found = objective.inspect(backbone, images, mask, objective.target(images))["heterogeneity"]
    distances = []
    for image in range(BATCH):
        hidden, seen = z[image, 1:][mask.hidden[image]], torch.cat([z[image, :1], z[image, 1:][~mask.hidden[image]]])
        distances.append((1 - hidden @ seen.mT).mean())
    assert found["distance"][1] == pytest.approx(torch.stack(distances).mean().item(), abs=1e-5)


COUNTED = {torch.ops.aten.baddbmm_: lambda _, left, right, *__, **___: 2 * left[0] * left[1] * left[2] * right[2]}


@both
def test_the_arithmetic_it_states_is_what_runs(config):
    counted = []
    for mto in (None, LOSSES):
        backbone, objective = build(config, mto)
        with op.forced("matmul"), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            run(backbone, objective, *inputs())
        counted.append(counter.get_total_flops())
    stated = BATCH * LOSSES.forward_flops(config.treated(VIT), VISIBLE + 1, HIDDEN)
    assert counted[1] - counted[0] == pytest.approx(stated, rel=1e-6)
    config = load_config(ROOT / "configs" / "mto_r_simmim_cifar.py")
    plain = train_flops_per_image(dataclasses.replace(config, mto=None))
    assert 1 < train_flops_per_image(config) / plain < 1.2


REFUSED = [
    ("mae_cifar", ["mto.rho0=1.5"], "mto.rho0=1.5; it must be from 0 to 1"),
    ("mae_cifar", ["mto.p=0"], "mto.p=0"),
    ("mae_cifar", ["mto.tau=0"], "mto.tau=0"),
    ("mae_cifar", ["mto.lambda_e=-1"], "mto.lambda_e=-1"),
    ("mae_cifar", ["mto.ramp=2"], "mto.ramp=2"),
    ("mae_cifar", ["mto.frozen_token=0"], "mto.frozen_token=0"),
    ("mae_cifar", ["mto.exclude=some"], "must be one of 'unmoved'"),
    ("mae_cifar", ["mto.rho=1"], "did you mean 'rho0'"),
    ("mae_cifar", ["mto.rho0=1", "objective.decoder_weights=0.5"], "both say how much hidden keys count"),
    ("mae_cifar", ["mto.rho0=1", "objective.decoder_depth=1"], "nobody asks but hidden patches"),
    ("illama_cifar_simmim", ["mto.rho0=1"], "IllamaConfig has its own rule of who sees whom"),
    ("illama_cifar_queries", ["mto.rho0=1"], "objective=MaskQueriesConfig has none"),
    ("illama_cifar_next", ["mto.rho0=1"], "objective=NextPatchConfig has none"),
]


@pytest.mark.parametrize(("name", "overrides", "words"), REFUSED, ids=[" ".join((n, *o)) for n, o, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_in_words(name, overrides, words):
    with pytest.raises(ConfigError, match=words):
        check(load_config(ROOT / "configs" / f"{name}.py", overrides))


def test_one_setting_switches_it_on_and_another_off(tmp_path):
    config = load_config(ROOT / "configs" / "simmim_cifar.py", ["mto.rho0=1"])
    assert config.mto == MtoRConfig()
    check_types(config)
    check(config)
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config
    assert apply_overrides(config, ["mto=none"]) == load_config(ROOT / "configs" / "simmim_cifar.py")
    check(load_config(ROOT / "configs" / "illama_cifar_mae.py", ["mto.rho0=1", "objective.decoder_depth=2"]))

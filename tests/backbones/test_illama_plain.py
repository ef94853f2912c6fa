"""The eager iLLaMA of benchmarks/sides computes what Lacuna's does; layers with their own backward, their formula."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.sides.eager_illama import EagerIllama
from benchmarks.sides.illama import CASES, sides
from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.illama_layers import RMSNorm, SwiGLU
from pretrain.objectives.pixel import PixelMAEConfig

TINY = IllamaConfig("tiny", patch_size=4, width=32, depth=2, heads=2)
GRID = Grid(4, 4)


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("part", ["whole", "subset"])
def test_the_eager_encoder_computes_what_ours_does_in_float64(alpha, part):
    torch.manual_seed(0)
    ours = TINY.build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15)
    eager = EagerIllama(3, 4, GRID.num_patches, TINY.dimensions())
    eager.load_state_dict(dict(ours.named_parameters()))
    ours.alpha.fill_(alpha)
    eager.alpha = float(ours.alpha)
    ours.double(), eager.double()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    ids = None if part == "whole" else torch.tensor([[0, 3, 4, 7, 11], [1, 2, 5, 9, 15]])
    sequence = ours(ours.embed(pixels, ids), ids).sequence
    got, want = torch.cat([sequence[:, 1:], sequence[:, :1]], dim=1), eager(pixels, ids)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # turns are those of float32
    weights = torch.randn_like(want)
    found = dict(zip(dict(eager.named_parameters()),
                     torch.autograd.grad((want * weights).sum(), list(eager.parameters())), strict=True))  # fmt: skip
    for name, grad in zip(found, torch.autograd.grad((got * weights).sum(),
                          [dict(ours.named_parameters())[name] for name in found]), strict=True):  # fmt: skip
        assert (grad - found[name]).abs().max() <= 1e-6 * found[name].abs().max(), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_both_sides_of_the_benchmark_have_the_same_loss_and_alpha_matters_to_it(case, alpha):
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    objective = PixelMAEConfig(decoder_width=32, decoder_depth=2, decoder_heads=2)
    pair = sides(case, TINY, GRID, objective, images, torch.float32)
    losses = []
    for value in (alpha, 0.5):
        for side in pair:
            side.set_alpha(value)
            losses.append(side.step(3).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] == pytest.approx(losses[3], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
def test_the_norms_own_backward_is_that_of_its_formula(dtype, tolerance):
    norm = RMSNorm(24).to(dtype)
    norm.weight.data.normal_()
    x = (torch.randn(3, 5, 24) + 2).to(dtype).requires_grad_()  # a mean that LayerNorm would take off
    grad = (torch.randn(3, 5, 24) + 1).to(dtype)
    y = norm(x)
    assert type(y.grad_fn).__name__ == "_NormalizeBackward"
    got = (y, *torch.autograd.grad(y, (x, norm.weight), grad))
    wide, gain = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    plain = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    want = (plain, *torch.autograd.grad(plain, (wide, gain), grad.double()))
    for one, two in zip(got, want, strict=True):
        assert one.dtype == dtype
        assert (one.double() - two).norm() <= tolerance * two.norm()


def test_the_gate_keeps_its_two_inputs_alone_and_has_the_gradients_of_its_formula():
    mlp = SwiGLU(8, 16).double()
    x, grad = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    want = torch.autograd.grad(mlp.fc2(F.silu(mlp.fc1(x)) * mlp.fc3(x)), list(mlp.parameters()), grad)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = mlp(x)
    assert len({tensor.data_ptr() for tensor in kept if tensor.numel() == 2 * 3 * 16}) == 3  # two, and fc2's input
    for one, two in zip(torch.autograd.grad(out, list(mlp.parameters()), grad), want, strict=True):
        torch.testing.assert_close(one, two)

"""Members of the two-weight softmax family with values, and how the tests of attention run and compare them."""

import torch

from masking.attention.op import attention, forced
from masking.attention.weighting import Weighting

CLASSES = 3  # the last of them has no token


def members(batch, queries, keys):
    """Name -> fields of a Weighting, float64 where they are numbers; lengths and classes differ from image to image."""
    rng = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.rand(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    ids = lambda size: torch.randint(0, CLASSES - 1, (batch, size), generator=rng, dtype=torch.int8)  # noqa: E731
    ends = lambda size: (rand(batch) * size).long() + 1  # noqa: E731
    classes = {"query_classes": ids(queries), "key_classes": ids(keys)}
    before, after = rand(CLASSES, CLASSES) + 0.2, rand(CLASSES, CLASSES)
    hard = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.float64)
    lengths = {"key_lengths": ends(keys), "query_lengths": ends(queries)}
    offset, alpha = max(0, keys - queries), torch.tensor(0.37, dtype=torch.float64)
    return {
        "plain": {},
        "soft": {"alpha": alpha},
        "soft, nothing later": {"alpha": torch.zeros_like(alpha)},
        "soft after a context": {"alpha": alpha, "offset": offset + 1},
        "causal": {"causal": True, "offset": offset},
        "lengths": lengths,
        "key bias": {"key_bias": rand(keys)},
        "hard": {"before": hard, "see_self": True, **classes},
        "before": {"before": before, **classes},
        "after": {"after": after, **classes},
        "everything": {"alpha": alpha, "offset": 1, **lengths, "key_bias": rand(keys), "before": before, "after": after,
                       "see_self": True, **classes},
    }  # fmt: skip


def projections(batch, heads, queries, keys, width, dtype):
    """q (B, H, L, E), k and v (B, H, S, E): float64 values that dtype can hold."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, queries, width), *[(batch, heads, keys, width)] * 2]
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).double() for shape in shapes]


def run(function, parts, fields, dtype, device="cpu"):
    """Output and gradients of function(*parts, weighting), by name; the weighting's numbers are float32 at least. The
    slopes are numbers that every dtype can hold: rounded for one and not for the other, they alone moved d alpha, a sum
    that cancels, by a third."""
    parts = [part.to(device, dtype).requires_grad_() for part in parts]
    fields = {name: _field(value, dtype, device) for name, value in fields.items()}
    learned = [name for name, value in fields.items() if isinstance(value, torch.Tensor) and value.requires_grad]
    out = function(*parts, Weighting(**fields))
    rng = torch.Generator().manual_seed(1)
    slope = torch.randn(out.shape, generator=rng, dtype=torch.float64).bfloat16().to(device, out.dtype)
    grads = torch.autograd.grad(out, [*parts, *(fields[name] for name in learned)], slope)
    names = ["out", *(f"d{index}" for index in range(len(parts))), *(f"d {name}" for name in learned)]
    return {name: value.detach().cpu() for name, value in zip(names, [out, *grads], strict=True)}


def run_by_triton(name, width, dtype, queries, keys):
    """What `run` gives of one member and shape on a GPU; in a process of its own it leaves behind the compiled kernels,
    which Triton keeps on disk."""
    parts, fields = projections(2, 3, queries, keys, width, dtype), members(2, queries, keys)[name]
    with forced("triton"):
        return run(attention, parts, fields, dtype, "cuda")


def error(got, want):
    """Relative Frobenius error."""
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-9)).item()


def _field(value, dtype, device):
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_floating_point():
        return value.to(device)
    return value.to(device, torch.promote_types(dtype, torch.float32)).clone().requires_grad_()

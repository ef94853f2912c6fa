"""Which keys count for which queries, and how much: the two-weight softmax.

    o_i = sum_j u_ij r_ij e^(s_ij) v_j / sum_j u_ij e^(s_ij),    s = q k^T / sqrt(E)

u, the weight before normalisation, says whether a key takes part at all; r, the gate after it, scales a key's share and
leaves the others theirs. Padding, hard masks between classes of tokens, reweighting and iLLaMA's soft mask are
members."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CLASSES = 8  # the kernels unroll over the classes


@dataclass(frozen=True)
class Weighting:
    """One member of the family; the fields multiply. B images, L queries, S keys, C classes; query i stands at the
    place of key i + offset. A query that attends to nothing gives zeros."""

    alpha: Tensor | None = None  # () float: r of keys that come after the query, 1 for others (iLLaMA, eq. 2); None: 1
    causal: bool = False  # u = 0 for keys that come after the query
    offset: int = 0  # how many cached keys precede the first query's own
    key_lengths: Tensor | None = None  # (B,) int: keys from there on are padding, and may hold anything
    query_lengths: Tensor | None = None  # (B,) int: queries from there on are padding, and give zeros
    key_bias: Tensor | None = None  # (S,) float, added to the scores of each key: log u
    query_classes: Tensor | None = None  # (B, L) int8 below C
    key_classes: Tensor | None = None  # (B, S) int8 below C
    before: Tensor | None = None  # (C, C) float >= 0, by class of query and of key: u; 0 excludes, without gradient
    after: Tensor | None = None  # (C, C) float, the same for r
    see_self: bool = False  # the key at the query's own place has the tables' entries at 1

    def is_plain(self) -> bool:
        """Whether this is ordinary attention."""
        return not (self.is_gated() or self.is_biased())

    def is_gated(self) -> bool:
        """Whether r is ever other than 1: no softmax of biased scores is then the same."""
        return self.alpha is not None or self.after is not None

    def is_biased(self) -> bool:
        """Whether u is ever other than 1."""
        tensors = (self.key_lengths, self.query_lengths, self.key_bias, self.before)
        return self.causal or any(tensor is not None for tensor in tensors)

    def learns_bias(self) -> bool:
        """Whether log u has a gradient."""
        return any(given is not None and given.requires_grad for given in (self.key_bias, self.before))

    def describe(self) -> str:
        """The member's name, as `lacuna doctor` and the benchmarks print it."""
        parts = {
            "soft mask": self.alpha is not None,
            "causal": self.causal,
            "lengths": self.key_lengths is not None or self.query_lengths is not None,
            "key bias": self.key_bias is not None,
            "classes before": self.before is not None,
            "classes after": self.after is not None,
        }
        return " + ".join(name for name, present in parts.items() if present) or "plain"

    def check(self, batch: int, num_queries: int, num_keys: int) -> None:
        """Raises ValueError where the fields do not fit a batch of so many images, queries and keys."""
        tables = [table for table in (self.before, self.after) if table is not None]
        classes = tables[0].shape[0] if tables else 0
        wanted: dict[str, tuple[int, ...]] = {
            "alpha": (), "key_lengths": (batch,), "query_lengths": (batch,), "key_bias": (num_keys,),
            "query_classes": (batch, num_queries), "key_classes": (batch, num_keys),
            "before": (classes, classes), "after": (classes, classes),
        }  # fmt: skip
        if self.offset < 0:
            raise ValueError(f"offset={self.offset}; the first query cannot stand before the first key: give 0 or more")
        for name, shape in wanted.items():
            given = getattr(self, name)
            if given is not None and given.shape != shape:
                size = f"{batch} images, {num_queries} queries and {num_keys} keys"
                raise ValueError(f"{name} is {tuple(given.shape)}; {size} need {shape}")
        if bool(tables) != (self.query_classes is not None) or bool(tables) != (self.key_classes is not None):
            raise ValueError("tables need query_classes and key_classes, and classes need a table: give all or none")
        if classes > MAX_CLASSES:
            raise ValueError(f"{classes} classes of tokens; at most {MAX_CLASSES} are allowed")
        if self.see_self and not tables:
            raise ValueError("see_self lifts the tables from a token's own key: give before or after, or leave it out")


PLAIN = Weighting()


def dense(weighting: Weighting, num_queries: int, num_keys: int, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """log u, -inf where a key is not attended to, and r, each (1 or B, L, S) or None where it is all 0 or all 1; in the
    precision of `like`, float32 at least, and with gradients to alpha, the key bias and the tables."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    places = torch.arange(num_queries, device=like.device)[:, None] + weighting.offset
    keys = torch.arange(num_keys, device=like.device)
    later, own = keys > places, (keys == places) & weighting.see_self
    bias = like.new_zeros(1, num_queries, num_keys, dtype=dtype) if weighting.is_biased() else None
    gate = like.new_ones(1, num_queries, num_keys, dtype=dtype) if weighting.is_gated() else None
    if weighting.before is not None:
        table = weighting.before.to(dtype)
        logs = torch.where(table > 0, torch.where(table > 0, table, 1).log(), -torch.inf)
        bias = _by_class(weighting, logs).masked_fill(own, 0)
    if weighting.after is not None:
        gate = _by_class(weighting, weighting.after.to(dtype)).masked_fill(own, 1)
    if weighting.alpha is not None and gate is not None:
        gate = torch.where(later, gate * weighting.alpha.to(dtype), gate)
    if bias is not None:
        if weighting.key_bias is not None:
            bias = bias + weighting.key_bias.to(dtype)
        if weighting.causal:
            bias = bias.masked_fill(later, -torch.inf)
        if weighting.key_lengths is not None:
            bias = bias.masked_fill(keys >= weighting.key_lengths[:, None, None], -torch.inf)
        if weighting.query_lengths is not None:
            rows = torch.arange(num_queries, device=like.device)
            bias = bias.masked_fill(rows[:, None] >= weighting.query_lengths[:, None, None], -torch.inf)
    return bias, gate


def _by_class(weighting: Weighting, table: Tensor) -> Tensor:
    """table (C, C) looked up for every pair: (B, L, S)."""
    assert weighting.query_classes is not None and weighting.key_classes is not None
    return table[weighting.query_classes.long()[:, :, None], weighting.key_classes.long()[:, None, :]]

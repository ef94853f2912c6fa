"""What a model's state dict holds and no optimizer updates: constants, and the few values that follow from the step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.engine.stored import FIXED, Reader
from pretrain.errors import CheckpointError


class FixedTensors:
    """The tensors of model that are not trained. Those it names in `moving` are read anew whenever they are asked for,
    and taken from a checkpoint; those in `given` are taken from it as well, and stay; the others must be the same."""

    def __init__(self, model: nn.Module) -> None:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._model = model
        self._moving: set[str] = set(model.moving()) if hasattr(model, "moving") else set()  # type: ignore[operator]
        self._given: set[str] = set(model.given()) if hasattr(model, "given") else set()  # type: ignore[operator]
        self._values = {name: _host(value) for name, value in model.state_dict().items() if name not in trained}

    def values(self) -> dict[str, Tensor]:
        """Name -> value as it is now, float32 on the host."""
        return {name: self._now(name) if name in self._moving else value for name, value in self._values.items()}

    def shapes(self) -> dict[str, list[int]]:
        """Name -> shape."""
        return {name: list(value.shape) for name, value in self._values.items()}

    def restore_precision(self) -> None:
        """Gives moving values their 32 bits back, where casting the model took some."""
        for name in self._moving:
            buffer = self._model.get_buffer(name)
            buffer.data = self._values[name].to(buffer.device)

    def load(self, reader: Reader, directory: Path) -> None:
        """Takes moving and given values from directory. Raises CheckpointError where another differs from it."""
        for name, value in self._values.items():
            stored = torch.empty(value.numel())
            reader.fill(FIXED, name, 0, stored)
            if name in self._moving | self._given:
                self._model.get_buffer(name).copy_(stored.view(value.shape))
                self._values[name] = stored.view(value.shape)
            elif not torch.equal(stored, value.reshape(-1)):
                raise CheckpointError(
                    f"{name} is not trained, yet differs from {directory}; was the code or the config changed?"
                )

    def _now(self, name: str) -> Tensor:
        return _host(self._model.get_buffer(name))


def _host(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone()

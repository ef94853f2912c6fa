"""How images are generated: what a user of `lacuna generate` may set, and what cannot be meant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from masking.recap import Decay, Plan
from pretrain.errors import ConfigError
from pretrain.objectives.mar import MAR
from pretrain.objectives.token_model import TokenModel
from pretrain.tokenizers.token_vit import TokenViT

Order = Literal["confidence", "random", "halton"]


@dataclass(frozen=True)
class Sampling:
    """The settings of one sampler. Guidance g mixes what the model says with and without the class, (1 + g) * with -
    g * without, g rising from 0 to the setting; 0 runs the conditional branch alone."""

    plan: Plan = field(default_factory=lambda: Plan(16))  # how many steps, and which are local
    decay: Decay = "cosine"  # of the share that is still masked
    order: Order | None = None  # of decoding; None: confidence for codes, random for MAR
    choice_temperature: float = 4.5  # of the noise on confidences, falling to 0 (MaskGIT 4.5, MAGE 6.0)
    temperature: float = 1.0  # of the codes that are drawn, or of the noise that MAR's head injects
    redraw: bool = False  # a full step draws its codes anew, at a temperature falling from 1, as ReCAP's authors do
    guidance: float = 0.0  # g at the end; MAR's cfg is 1 + g
    diffusion_steps: int = 100  # of MAR's head, for tokens of full steps
    local_diffusion_steps: int | None = None  # for tokens of local steps; None: as many
    cache_buffer: bool = False  # MAR's local steps leave its buffer tokens as the full one left them: cheaper by far
    refresh: bool = False  # local steps are full passes over the same targets: what ReCAP approximates
    seed: int = 0  # image i is the same whatever else is generated beside it

    def check(self, backbone: TokenViT, objective: TokenModel, num_unknown: int) -> None:
        """Raises ConfigError for the first setting that cannot be meant for this model."""
        continuous = isinstance(objective, MAR)
        try:
            self.plan.check(num_unknown)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for name, allowed in (("decay", get_args(Decay)), ("order", (None, *get_args(Order)))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}; use one of {', '.join(map(str, allowed))}")
        if continuous and self.order == "confidence":
            raise ConfigError(
                "order=confidence needs codes, whose probability is known; MAR's order is random or halton"
            )
        if continuous and self.redraw:
            raise ConfigError("redraw=true is for codes, and MAR draws values; leave it out")
        if self.cache_buffer and not (continuous and self.plan.local):
            raise ConfigError(
                "cache_buffer=true has no effect: it is for local steps of MAR, which has buffer tokens; leave it out"
            )
        if not continuous and self.local_diffusion_steps is not None:
            raise ConfigError("local_diffusion_steps has no effect: only MAR has a diffusion head")
        if self.guidance and not (backbone.classes and backbone.class_drop):
            raise ConfigError(
                f"guidance={self.guidance} compares with what the model says of no class, and it was trained without: "
                "set backbone.classes and backbone.class_drop in training, or guidance=0 here"
            )
        if self.guidance < 0 or self.temperature < 0 or self.choice_temperature < 0:
            raise ConfigError("guidance, temperature and choice_temperature must be 0 or more")
        if min(self.diffusion_steps, self.local_diffusion_steps or 1) < 1:
            raise ConfigError("diffusion steps must be 1 or more")
        if self.refresh and not self.plan.local:
            raise ConfigError("refresh=true has no effect without local steps; set local=1 or more")

    def order_for(self, objective: TokenModel) -> Order:
        """The order of decoding, the model's usual one where none is set."""
        return self.order or ("random" if isinstance(objective, MAR) else "confidence")

    def token_temperature(self, step: int) -> float:
        """At which codes of a step, counted from 0, are drawn."""
        if not self.redraw or self.plan.steps == 1:
            return self.temperature
        falling = 1 - (step / (self.plan.steps - 1)) ** 0.5
        return self.temperature + falling * (1 - self.temperature)

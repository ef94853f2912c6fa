"""Looks at a run from outside the step: pictures of reconstructions and samples, the quality of frozen features.

Works on plain copies of the model filled from the engine's gathered weights, so it is the same at every ZeRO stage and
can never touch what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pretrain.config import Config
from pretrain.data.evaluation_batches import EvaluationBatches, evaluation_batches
from pretrain.data.map_batches import MapBatches
from pretrain.data.shards import ShardSet
from pretrain.data.sources import Sources
from pretrain.engine.agree import gather_json
from pretrain.engine.engine import Engine
from pretrain.evaluation.evaluate import evaluate
from pretrain.evaluation.features import interleave
from pretrain.evaluation.head import Head
from pretrain.evaluation.segmentation import class_names, figures, segment
from pretrain.generate.picture import samples_picture
from pretrain.model import PretrainModel, build_model, grid_of
from pretrain.objectives.base import Segmenting
from pretrain.objectives.token_model import TokenModel
from pretrain.sparse.folded import folded
from pretrain.step import Recipe, draw_mask
from pretrain.tokenizers.token_vit import TokenViT
from pretrain.tracking.alignment_picture import alignment_picture
from pretrain.tracking.heterogeneity_picture import heterogeneity_picture
from pretrain.tracking.lines import read_lines
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.panels import panel
from pretrain.tracking.segments_picture import GROUP, segments_picture
from pretrain.types import Labels

_INSPECTED = {"alignment": alignment_picture, "heterogeneity": heterogeneity_picture}  # by the group of their pictures


class Observer:
    """Writes panels/step-*.png, panels/samples-*.png and evaluations.jsonl at the steps the config names; first and
    last step always."""

    def __init__(self, config: Config, engine: Engine, sources: Sources, tracker: Tracker) -> None:
        self._config = config
        self._engine = engine
        self._sources = sources
        self._tracker = tracker
        self._shown: tuple[Tensor, Tensor] | None = None  # images and labels of the pictures

    def at(self, step: int, *, first: bool = False, last: bool = False) -> None:
        """What is due after `step` steps. Collective: every rank calls it with the same arguments."""
        tracking, evaluation = self._config.tracking, self._config.evaluation
        always = last or step == 0
        picture, measured, sampled = self._there(step) if first else (False, False, False)
        if tracking.panels_every is not None and not picture and (always or step % tracking.panels_every == 0):
            self._look(step)
        if tracking.samples_every is not None and not sampled and (always or step % tracking.samples_every == 0):
            self._sample(step)
        val = self._sources.val
        if evaluation.every_steps is not None and val is not None and not measured:
            if always or step % evaluation.every_steps == 0:
                self._evaluate(step, val)

    def _there(self, step: int) -> tuple[bool, bool, bool]:
        """Whether an earlier attempt left picture, evaluation and samples of this step, before it was asked to stop,
        say."""
        drawn = self._tracker.has_inspection(step) if self._config.mask is None else self._picture(step).exists()
        mine = [drawn, self._tracker.has_evaluation(step), self._picture(step, "samples").exists()]
        picture, measured, sampled = gather_json(mine)[0]
        return picture, measured, sampled

    def _picture(self, step: int, kind: str = "step") -> Path:
        return self._config.run_dir / "panels" / f"{kind}-{step:07d}.png"

    @torch.no_grad()
    def _look(self, step: int) -> None:
        """The objective's own figures of some images, then their picture, where there is something to see."""
        weights = self._engine.weights()
        if self._engine.rank:
            return
        with self._whatever_the_disk_says(step):
            self._draw(step, self._copy(weights))

    @contextmanager
    def _whatever_the_disk_says(self, step: int) -> Iterator[None]:
        """A picture that cannot be written is noted and missing; no run ends for it."""
        try:
            yield
        except OSError as error:
            self._tracker.event("picture failed", step=step, reason=str(error))

    def _draw(self, step: int, model: PretrainModel) -> None:
        config = self._config
        images, labels = self._images()
        target = model.objective.target(images, labels)
        grid = grid_of(config)
        mask = draw_mask(Recipe(config.mask, grid, config.seed, 1.0), torch.arange(len(images)), 0, images, target)
        self._tracker.inspection(step, model.objective.inspect(model.backbone, images, mask, target))
        self._draw_inspections(step)
        if config.mask is None:
            made = model.objective.show(model.backbone, images)
            if made is None:
                return
        else:
            made = model.objective.reconstruct(model.backbone, images, mask) if config.objective.reconstructs else None
        path, hidden = self._picture(step), None if config.mask is None else mask.hidden.cpu()
        shown = None if made is None else made.float().cpu()
        panel(images.cpu(), hidden, shown, path, grid=grid, title=f"step {step}")
        self._tracker.panel(step, path)

    def _draw_inspections(self, step: int) -> None:
        """What the objective said of itself so far as pictures, where it learns an alignment or has mask tokens."""
        run_dir = self._config.run_dir
        records = read_lines(run_dir / "inspections.jsonl")
        for group, draw in _INSPECTED.items():
            path = run_dir / "panels" / f"{group}-{step:07d}.png"
            if draw(records, path) is not None:
                self._tracker.panel(step, path, group)

    def _sample(self, step: int) -> None:
        """Images that the model generates, by the average of its weights where one is kept."""
        weights = self._engine.weights(ema=self._has_average(step))
        if self._engine.rank:
            return
        model, path = self._copy(weights), self._picture(step, "samples")
        assert isinstance(model.backbone, TokenViT) and isinstance(model.objective, TokenModel)  # checks.py
        with self._whatever_the_disk_says(step):
            samples_picture(model.backbone, model.objective, self._config.tracking.panel_images, path)
            self._tracker.panel(step, path, "samples")

    def _has_average(self, step: int) -> bool:
        return self._config.engine.ema_decay is not None and step > 0

    def _segment(self, step: int, val: ShardSet, model: PretrainModel, which: str) -> None:
        """Figures and picture of a segmentation; the picture is of rank 0's images."""
        config, engine = self._config, self._engine
        assert isinstance(config.objective, Segmenting)
        classes, limit = config.objective.pixel_classes, config.evaluation.max_images
        batches = MapBatches(val, config.data, classes, 16, engine.rank, engine.world, limit)
        found = segment(
            model.objective, model.backbone, batches, classes, engine.device,
            num_examples=0 if engine.rank else min(config.tracking.panel_images, batches.num_images),
            reduce=engine.all_reduce_host,
        )  # fmt: skip
        if engine.rank:
            return
        result, path = figures(found, class_names(config)), self._picture(step, GROUP)
        self._tracker.evaluation({"step": step, "weights": which, **result})
        with self._whatever_the_disk_says(step):
            segments_picture(found.examples, class_names(config), path, f"step {step}: mIoU {result['miou']:.1%}")
            self._tracker.panel(step, path, GROUP)

    def _evaluate(self, step: int, val: ShardSet) -> None:
        cfg = self._config.evaluation
        ema = cfg.weights == "ema" and self._has_average(step)
        model = self._copy(self._engine.weights(ema=ema))
        if isinstance(self._config.objective, Segmenting):
            self._segment(step, val, model, "ema" if ema else "model")
            return
        engine = self._engine
        result = evaluate(
            model.backbone,
            self._batches(self._sources.train),
            self._batches(val),
            cfg,
            head=Head.of(model.objective, self._config.objective),
            device=engine.device,
            gather=interleave(engine.rank, engine.world, engine.all_reduce_host) if engine.world > 1 else None,
            is_main=engine.rank == 0,
        )
        self._tracker.evaluation({"step": step, "weights": "ema" if ema else "model", **result})

    def _copy(self, weights: dict[str, Tensor]) -> PretrainModel:
        with torch.random.fork_rng(devices=[]):
            model = build_model(self._config)
        model.load_state_dict(folded(weights))
        return model.to(self._engine.device).eval().requires_grad_(False)

    def _batches(self, shards: ShardSet) -> EvaluationBatches:
        return evaluation_batches(
            shards,
            self._config.data,
            batch_size=64,
            rank=self._engine.rank,
            world=self._engine.world,
            max_images=self._config.evaluation.max_images,
        )

    def _images(self) -> tuple[Tensor, Labels]:
        """The images that pictures show, on the device, and what they are."""
        if self._shown is None:
            number = self._config.tracking.panel_images
            shards = self._sources.val or self._sources.train
            batches = evaluation_batches(
                shards, self._config.data, batch_size=number, rank=0, world=1, max_images=number
            )
            self._shown = next(iter(batches))
        images, labels = (part.to(self._engine.device) for part in self._shown)
        return images, Labels.single(labels)

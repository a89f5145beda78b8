"""torchtitan's step of pretraining on an adapter or all weights, with the sound counted and clips to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune.adapters import Adapter, gathered, merge_adapter, save_adapter
from finetune.lora import (
    DEFAULT,
    adapter_layers,
    adapter_parameters,
    base_parameters,
    inject,
    reset,
    set_roles,
)
from finetune.sft.config import CLIPS
from finetune.sft.finetune_run import FinetuneRun
from finetune.sft.heard import SoundTrained
from finetune.sft.samples import SampleClips
from pretrain.data.stream.sample_set import SampleSet
from pretrain.launch.stage_run import StageRun, model_config
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import open_weights
from pretrain.model.flavors import build_model, flavor
from pretrain.model.quantised import load_base
from pretrain.model.shell import AVTransformer
from pretrain.objective import Corrupted, ObjectiveConfig
from pretrain.schedule import TaskDraw, task_of_step
from pretrain.titan.ema import Ema
from pretrain.titan.parallelize import reshard
from pretrain.titan.train_spec import TrainSpec, build_scaled_optimizers, train_spec
from pretrain.titan.trainer import MetricsSink, PretrainTrainer
from pretrain.titan.weights import seen_by
from pretrain.titan.window import StepResult

ADAPTER = "adapter"


class FinetuneTrainer(PretrainTrainer):
    """With LoRA only the adapter is trained, averaged and saved; the base is read at each start."""

    def __init__(self, run: StageRun, sets: dict[str, SampleSet], log: MetricsSink) -> None:
        self.tuning = cast(FinetuneRun, run)
        self.frozen = not self.tuning.finetune.full
        sound = self.tuning.finetune.sound
        self.sound = SoundTrained(sound.required and self.tuning.speech, sound.patience)
        super().__init__(run, sets, log)
        self.checkpointer.states["sound"] = self.sound
        self.samples = SampleClips(self.tuning, self.device)

    def spec(self, sets: dict[str, SampleSet]) -> TrainSpec:
        config = self.tuning.finetune
        build = build_model if config.full else partial(_adapted, self.tuning)
        scaled = partial(build_scaled_optimizers, config.lr_scale.by_modality())
        return train_spec(self.run, sets, build, scaled)

    def first_weights(self) -> None: ...  # those of the model that it starts from

    def first_average(self) -> Ema:
        config, start = self.tuning.finetune, self.run.init_from
        if config.full or start is None:
            return super().first_average()
        with torch.device("meta"):
            shapes = {
                key: value.shape
                for key, value in build_model(flavor(self.run.config.flavor)).state_dict().items()
            }
        weights = open_weights(start, self.tuning.weights, shapes)
        load_base(base_parameters(self.model), weights, config.lora.quantisation)
        reset(self.model, config.lora)
        return Ema(self.model, config.ema_decay, only_trained=True)

    def forward_backward_step(
        self, *, input_dict: Corrupted, labels: None, global_valid_tokens: Tensor
    ) -> Tensor:  # type: ignore[override]
        config = self.tuning.finetune
        if self._drawn.set_name != CLIPS:
            if config.keeps_answers:
                input_dict = self._with_answers_of_the_base(input_dict)
            input_dict = replace(input_dict, weight=input_dict.weight * config.base_weight)
        return super().forward_backward_step(
            input_dict=input_dict, labels=labels, global_valid_tokens=global_valid_tokens
        )

    @property
    def objective(self) -> ObjectiveConfig:
        config = self.tuning.finetune
        own = self._drawn.set_name == CLIPS
        return replace(config.objective, dropout=config.clips_dropout) if own else config.objective

    @property
    def _drawn(self) -> TaskDraw:
        return task_of_step(self.run.config.seed, self.run.config.stage(self.run.stage), self.step)

    def _with_answers_of_the_base(self, given: Corrupted) -> Corrupted:
        """The same inputs, with the velocities of the model without its adapter as targets."""
        layers = adapter_layers(self.model)
        set_roles(layers, None)
        try:
            with torch.no_grad(), self.train_context():
                answer = self.model(given.video, given.audio, given.conditioning)
        finally:
            set_roles(layers)
        return replace(
            given,
            video_target=None if answer.video is None else answer.video.float(),
            audio_target=None if answer.audio is None else answer.audio.float(),
        )

    def _apply(self, result: StepResult) -> None:
        before = self.ema.updates
        super()._apply(result)
        if self.ema.updates > before:
            self.sound.add(result.audio_s, self._drawn.set_name == CLIPS)
        if self.finished:
            self.sound.check()

    def extra_row(self) -> dict[str, float]:
        if dist.get_rank() == 0:
            print(f"step {self.step}: {self.sound}", flush=True)
        return self.sound.row()

    def after_step(self, step: int) -> Sequence[tuple[Path, str]]:
        config = self.tuning.finetune
        due = config.clips_every and (step % config.clips_every == 0 or (step > 0 and self.finished))
        if not due:
            return ()
        with self.ema.swapped_in():
            reshard(self.model)
            made = self.samples(cast(AVTransformer, self.model), step)
            reshard(self.model)
        return made

    def export(self, rank: int) -> str:
        """out/model, and of an adapter out/adapter, merged into it; returns the model's id on rank 0."""
        config, start = self.tuning.finetune, self.run.init_from
        if config.full or start is None:
            return super().export(rank)
        with self.ema.swapped_in():
            reshard(self.model)
            tensors = gathered(adapter_parameters(self.model, DEFAULT))
        reshard(self.model)
        if rank:
            return ""
        identity = self.run.identity()
        facts: dict[str, Any] = {name: identity[name] for name in ("stage", "recipe_hash", "latents")}
        facts |= {"step": self.step, **self.sound.row()}
        seen = seen_by(self.run)
        adapter = Adapter(
            flavor=self.run.config.flavor,
            base_id=str(model_config(start)["checkpoint_id"]),
            base_weights=self.tuning.weights,
            config=config.lora,
            facts=facts,
        )
        save_adapter(self.run.out / ADAPTER, tensors, adapter)
        return merge_adapter(
            start, self.run.out / ADAPTER, self.run.out / "model", {**facts, "trained_on": seen}
        )


def _adapted(run: FinetuneRun, args: ModelArgs) -> nn.Module:
    """On the meta device, with an adapter; its weights and those of the base are put in later."""
    model = inject(build_model(args), run.finetune.lora, (DEFAULT,))
    model.init_weights = lambda **_: None  # type: ignore[method-assign]
    return model

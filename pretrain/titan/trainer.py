"""torchtitan's Trainer with NAVA's step: two modalities, each normalised by its own global count.

Meshes, meta-device building, sharding, optimizer, schedule, clipping and DCP come from torchtitan. Its step
divides by one token count and its loop has neither a way to skip a step nor to stop at a signal, so those two
methods are ours.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchtitan.distributed import utils as dist_utils
from torchtitan.protocols.train_spec import TrainSpec, register_train_spec
from torchtitan.train import Trainer

from pretrain.data.stream.collate import CollatedBatch, to_av_batch
from pretrain.data.stream.loader import StageLoader
from pretrain.data.stream.sample_set import SampleSet
from pretrain.launch.stage_run import StageRun
from pretrain.model.flavors import flavor
from pretrain.objective import Corrupted, ObjectiveConfig, corrupt, element_counts, velocity_loss
from pretrain.randomness import stable_hash
from pretrain.titan.checkpoints import Checkpoints
from pretrain.titan.ema import Ema
from pretrain.titan.job_config import TRAIN_SPEC, job_config
from pretrain.titan.optimizer_states import set_rates
from pretrain.titan.policy import StepGuard
from pretrain.titan.profiling import StepProfiler
from pretrain.titan.step_flops import batch_flops
from pretrain.titan.telemetry import Telemetry
from pretrain.titan.train_spec import train_spec
from pretrain.titan.weights import export, initialise, load_parent
from pretrain.titan.window import StepResult, Window
from pretrain.tracking import CLIPS_SEEN
from pretrain.types import AUDIO_CHANNELS, AUDIO_TOKENS_PER_S, Task, cache_flags, sent

MetricsSink = Callable[[dict[str, Any], int], None]


class _MicroBatch(NamedTuple):
    task: Task
    tokens: int
    flops: int
    corrupted: Corrupted  # on the device


class PretrainTrainer(Trainer):
    """Trains one stage; `log(metrics, step)` gets a row every `log_every` steps, on every rank."""

    checkpointer: Checkpoints
    frozen = False  # the weights get no gradient, an adapter does

    def __init__(self, run: StageRun, sets: dict[str, SampleSet], log: MetricsSink) -> None:
        config = run.config
        self.run, self.log = run, log
        register_train_spec(TRAIN_SPEC, self.spec(sets))
        super().__init__(job_config(config, run.stage, run.out, int(os.environ["WORLD_SIZE"])))
        self.model = self.model_parts[0]
        self.first_weights()
        self.ema = self.first_average()
        self.guard = StepGuard(config.policy)
        self.checkpointer = Checkpoints(
            run.checkpoints,
            config.checkpoint,
            dataloader=self.dataloader,
            model_parts=self.model_parts,
            optimizers=self.optimizers,
            lr_schedulers=self.lr_schedulers,
            states={"train_state": self, "ema": self.ema, "judge": self.guard},
            checkpoint_config=dataclasses.replace(self.job_config.checkpoint, enable=True),
        )
        self.noise_seed = stable_hash(config.seed, run.stage, "noise")
        self.window = Window()
        self.telemetry = Telemetry(self.metrics_processor, self.device, config.monitor.peak_tflops)
        self.profiler = StepProfiler(config.monitor, run.out, dist.get_rank())
        self.clips_seen = 0  # up to the last step, counted on the rank that logs
        self.stop_requested = self.stopping = False

    def spec(self, sets: dict[str, SampleSet]) -> TrainSpec:
        """Model, sharding, optimizer and data of the stage."""
        return train_spec(self.run, sets)

    def first_average(self) -> Ema:
        """Load the weights of the parent, if any; returns the average that training begins with."""
        return load_parent(self.model, self.run)

    def after_step(self, step: int) -> Sequence[tuple[Path, str]]:
        """Called by all ranks after a step, and with 0 before the first: files to log, with their folder."""
        return ()

    def extra_row(self) -> dict[str, float]:
        """What else a log row has."""
        return {}

    def export(self, rank: int) -> str:
        """Write out/model/ on rank 0; returns its id. All ranks must call it."""
        return export(self.model, self.ema, self.run, self.step, rank)

    def first_weights(self) -> None:
        """What training starts from where there is no parent."""
        initialise(self.model, self.run.config.flavor, self.run.config.seed)

    @property
    def objective(self) -> ObjectiveConfig:
        """How the batches of this step are noised, and which of their conditions are dropped."""
        return self.run.config.objective

    @property
    def finished(self) -> bool:
        return self.step >= self.job_config.training.steps

    def clips_of_step(self, step: int) -> int:
        """Clips in the global batch of a step."""
        assert isinstance(self.dataloader, StageLoader)
        return self.dataloader.clips_of_step(step)

    def stop_on(self, *signals: signal.Signals) -> None:
        """These signals end training after the current step, with a checkpoint."""
        for number in signals:
            signal.signal(number, lambda *_: setattr(self, "stop_requested", True))

    def resume(self) -> int:
        """Load the newest finished checkpoint, if any; returns its step (0 = none).

        The next step has the learning rate of this configuration's schedule.
        """
        if self.checkpointer.load(step=-1) and not self.finished:
            set_rates(self.lr_schedulers)
        return self.step

    def write_seed(self) -> None:
        """Write the state of step 0, unless the training has begun, and end it before its next step."""
        if not self.step:
            self.checkpointer.save(0, last_step=True)
        self.stopping = True

    def train(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        """Steps until the stage's end or a signal; saves at intervals and at the end. Raises OSError."""
        assert self.dataloader is not None
        batches = self.batch_generator(self.dataloader)
        while self.should_continue_training():
            self.step += 1
            self.profiler.before(self.step)
            self.gc_handler.run(self.step)
            self.train_step(batches)
            self._save(last=self.finished or self.stopping)
            self.profiler.after(self.step)
            after_step(self.step)
        self.profiler.close()

    def should_continue_training(self) -> bool:
        return not (self.finished or self.stopping)

    def train_step(self, data_iterator: Iterator[tuple[CollatedBatch, Tensor]]) -> None:
        """Accumulate the micro-batches, clip, and apply the step unless the guard skips it."""
        start = time.perf_counter()
        self.optimizers.zero_grad()
        lr = self.lr_schedulers.schedulers[0].get_last_lr()[0]
        micro_batches = [
            self._corrupted(*next(data_iterator)) for _ in range(self.gradient_accumulation_steps)
        ]
        data_s, prepared = self.telemetry.waited(), time.perf_counter()
        counts = [torch.stack(element_counts(batch.corrupted)) for batch in micro_batches]
        tokens = sum(batch.tokens for batch in micro_batches)
        flags = torch.tensor([tokens, float(self.stop_requested)], dtype=torch.float64)
        totals = self._summed(torch.cat([torch.stack(counts).sum(0), sent(flags, self.device)])).cpu()
        video_count, audio_count, tokens, stop = totals.tolist()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            sums += self.forward_backward_step(
                input_dict=batch.corrupted, labels=None, global_valid_tokens=totals[:2]
            )
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        grad_norm = dist_utils.clip_grad_norm_(
            parameters, self.job_config.training.max_norm, foreach=True
        ).item()
        video, audio = self._summed(sums).tolist()
        result = StepResult(
            micro_batches[0].task,
            video / video_count if video_count else None,
            audio / audio_count if audio_count else None,
            self.run.config.objective.audio_weight,
            grad_norm,
            int(tokens),
            start,
            self.run.config.objective.video_weight,
            audio_count / AUDIO_CHANNELS / AUDIO_TOKENS_PER_S,
            data_s=data_s,
            prepare_s=prepared - start - data_s,
            flops=sum(batch.flops for batch in micro_batches) / self.run.config.parallel.context,
        )
        self._apply(result)
        self.clips_seen += self.clips_of_step(self.step)
        self.stopping = stop > 0
        self.window.add(result, time.perf_counter())
        if self.step % self.run.config.log_every == 0 or self.step == 1 or self.finished or self.stopping:
            self.log({**self._row(), "lr": lr, **self.extra_row()}, self.step)

    def _row(self) -> dict[str, Any]:
        """What the steps since the last row came to; all ranks call it."""
        row, seconds = self.window.summary(dist.get_world_size()), self.window.seconds
        times = self.checkpointer.times.take()
        row |= self.telemetry.row(self.window.take(), seconds, times.stopped_s) | times.row()
        skipped = {
            "skipped_nonfinite": self.guard.skipped_nonfinite,
            "skipped_spikes": self.guard.skipped_spikes,
        }
        return {**row, **skipped, CLIPS_SEEN: self.clips_seen}

    def forward_backward_step(
        self, *, input_dict: Corrupted, labels: None, global_valid_tokens: Tensor
    ) -> Tensor:  # type: ignore[override]
        """One micro-batch; `global_valid_tokens`: (video, audio) elements of the step. Returns loss sums."""
        with self.train_context():
            velocity = self.model(input_dict.video, input_dict.audio, input_dict.conditioning)
            sums = velocity_loss(velocity, input_dict)
            video_count, audio_count = global_valid_tokens
            weights = self.run.config.objective
            sums.loss(video_count, audio_count, weights.audio_weight, weights.video_weight).backward()
        return torch.stack([sums.video, sums.audio]).detach().double()

    def _corrupted(self, batch: CollatedBatch, labels: Tensor) -> _MicroBatch:
        clean = to_av_batch(batch)
        corrupted = corrupt(clean, self.objective, self.noise_seed)
        cache_flags(corrupted.video, corrupted.audio, corrupted.conditioning)
        flops = batch_flops(flavor(self.run.config.flavor), corrupted, self.frozen)
        return _MicroBatch(clean.task, labels.numel(), flops, corrupted.to(self.device))

    def _apply(self, result: StepResult) -> None:
        if self.guard.take(result.loss, result.grad_norm, self.step):
            self.checkpointer.maybe_wait_for_staging()
            self.optimizers.step()
            self.ema.update()
        self.lr_schedulers.step()

    def _summed(self, values: Tensor) -> Tensor:
        """Sum over ranks, once for those that hold a micro-batch together."""
        dist.all_reduce(values)
        return values / self.run.config.parallel.context

    def _save(self, last: bool) -> None:
        self.checkpointer.save(self.step, last_step=last)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rng": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        torch.set_rng_state(state_dict["rng"])

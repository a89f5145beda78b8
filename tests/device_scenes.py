"""What a GPU does, scene by scene, on a pretended one: each returns the crossings between it and the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from alignment_cases import advantage, scored
from context_ranks import cases
from model_cases import clean_batch, conditioning, debug_model, present
from pretend_gpu import GPU, device_guard, pretend_gpu, value_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.lora import LoraConfig, inject
from finetune.noising import Levels
from finetune.objectives.awm import Awm, AwmConfig, AwmPhase
from finetune.objectives.base import Objective, RolloutPlan
from finetune.objectives.grpo import Grpo, GrpoConfig, GrpoPhase
from finetune.objectives.gsb_dpo import GsbDpo, GsbDpoConfig, GsbDpoPhase, TieRates
from finetune.objectives.nft import Nft, NftConfig, NftPhase
from finetune.objectives.rwr import Rwr, RwrConfig, RwrPhase
from finetune.policy import LoraPolicy
from finetune.recipe import AlignConfig
from finetune.rollout import PromptBatch, roll_out
from finetune.sde import Kernel, StochasticSteps
from finetune.trainer import Trainer
from finetune.types import PreferencePairs, Rollout
from pretrain.data.stream.collate import CollatedBatch
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales
from pretrain.flow.solvers import Latents, SolverName
from pretrain.model.flavors import build_model, flavor
from pretrain.model.shell import AVTransformer
from pretrain.objective import ObjectiveConfig
from pretrain.recipe import PretrainConfig
from pretrain.sampling import LatentRates, SamplerConfig, sample
from pretrain.tasks import TASKS
from pretrain.titan.checkpoint_times import CheckpointTimes
from pretrain.titan.ema import Ema
from pretrain.titan.job_config import job_config
from pretrain.titan.policy import StepGuard
from pretrain.titan.ranks import Ranks
from pretrain.titan.telemetry import Telemetry
from pretrain.titan.window import Window
from pretrain.types import Task, cache_flags

Crossings = dict[str, int]
RATES = LatentRates(6.0, 25.0)
CPU = torch.device("cpu")
FULL = GuidanceScales(
    text_video=1, text_audio=1, align_video=1, align_audio=1, timbre_video=1, timbre_audio=1
)


def forward(name: str, case: str) -> Crossings:
    """A forward pass whose inputs were sent from the host; its values are those of the CPU."""
    given = [part for part in cases()[case]]
    with torch.no_grad():
        want = debug_model(name=name)(*given)
    model = debug_model(name=name)
    with pretend_gpu() as gpu, torch.no_grad():
        gpu.put(model)
        found = model(*(None if part is None else part.to(GPU) for part in given))
        places = gpu.places()
    for answer, expected in zip(found, want, strict=True):
        assert (answer is None) == (expected is None)
        if answer is not None:
            assert answer.device == GPU
            torch.testing.assert_close(value_of(answer), expected, rtol=1e-4, atol=1e-5)
    return places


def sampling(
    solver: SolverName, steps: int, first_frame: bool = False, scales: GuidanceScales = FULL
) -> Crossings:
    """A whole trajectory from latents on the GPU."""
    with pretend_gpu() as gpu:
        model = gpu.put(debug_model())
        start = Latents(gpu.put(torch.randn(2, 48, 3, 4, 4)), gpu.put(torch.randn(2, 128, 10)))
        frame = gpu.put(torch.randn(2, 48, 1, 4, 4)) if first_frame else None
        config = SamplerConfig(solver=solver, steps=steps, guidance=scales)
        made = sample(model, start, conditioning().to(GPU), RATES, config, frame)
        assert made.video is not None and made.audio is not None
        assert made.video.device == made.audio.device == GPU
        return gpu.places()


def collated(task: Task) -> CollatedBatch:
    """A batch as the loader gives it, one clip shorter than the others."""
    batch, spec = clean_batch(task), TASKS[task]
    names = ("text", "text_mask", "speakers", "speaker_positions")
    given = {
        "task": torch.tensor(list(Task).index(task)),
        "sample_ids": batch.sample_ids,
        "epochs": batch.epochs,
        "video_rate_hz": torch.tensor(6.0, dtype=torch.float64),
        **{name: getattr(batch.conditioning, name) for name in names},
    }
    for name, wanted in (("video", spec.video), ("audio", spec.audio)):
        if wanted:
            stream = present(getattr(batch, name))
            lengths = stream.lengths - torch.tensor([1, 0, 0, 0])
            given |= {name: stream.latents, f"{name}_lengths": lengths}
    return given


def training_step(task: Task = Task.TI2AV, micro_batches: int = 2) -> Crossings:
    """PretrainTrainer's own step on a model without shards; gradients appear as if the engine made them."""
    from pretrain.titan.trainer import PretrainTrainer

    class OneStep(PretrainTrainer):
        def __init__(self, model: AVTransformer) -> None:
            config = PretrainConfig(flavor="debug", log_every=1)
            self.run, self.model, self.device = SimpleNamespace(config=config), model, GPU  # type: ignore
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            self.optimizers = optimizer  # type: ignore[assignment]
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            self.lr_schedulers = SimpleNamespace(schedulers=[scheduler], step=scheduler.step)  # type: ignore
            self.guard, self.ema, self.window = StepGuard(config.policy), Ema(model, 0.99), Window()
            times = CheckpointTimes()
            self.checkpointer = SimpleNamespace(maybe_wait_for_staging=lambda: None, times=times)  # type: ignore
            self.job_config = job_config(config, "stage1", Path("out"), 1)
            monitor = SimpleNamespace(
                device_name="NVIDIA H100",
                get_peak_stats=lambda: SimpleNamespace(max_active_gib=1.0, max_reserved_gib=2.0),
                reset_peak_stats=lambda: None,
            )
            processor = SimpleNamespace(
                device_memory_monitor=monitor, gpu_peak_flops=989e12, data_loading_times=[0.25]
            )
            self.telemetry = Telemetry(processor, GPU, 0.0)  # type: ignore[arg-type]
            self.train_context, self.noise_seed = nullcontext, 1  # type: ignore[assignment]
            self.gradient_accumulation_steps, self.step, self.clips_seen = micro_batches, 1, 0
            self.stop_requested = self.stopping = False
            self.rows: list[dict[str, Any]] = []
            self.log = lambda metrics, step: self.rows.append(metrics)  # type: ignore[assignment]

        def clips_of_step(self, step: int) -> int:
            return 4 * micro_batches

    model = debug_model()
    with pretend_gpu(_gradients_of(model)) as gpu, _alone():
        trainer = OneStep(gpu.put(model))
        before = gpu.places()
        trainer.train_step(iter([(collated(task), torch.zeros(9))] * micro_batches))
        assert not before and len(trainer.rows) == 1 and trainer.ema.updates == 1
        assert trainer.rows[0]["mfu_percent"] > 0 and trainer.rows[0]["memory/max_reserved_gib"] == 2.0
        return gpu.places()


@contextmanager
def _alone() -> Iterator[None]:
    """One rank without a process group."""

    def gather(found: list[Tensor], given: Tensor, group: object) -> None:
        assert given.device == CPU
        found[0].copy_(given)

    answers = {
        "all_reduce": None,
        "new_group": None,
        "get_backend": "nccl",
        "get_world_size": 1,
        "get_rank": 0,
    }
    with ExitStack() as opened:
        for name, answer in answers.items():
            opened.enter_context(mock.patch(f"torch.distributed.{name}", return_value=answer))
        opened.enter_context(mock.patch("torch.distributed.all_gather", gather))
        yield


def _gradients_of(model: nn.Module) -> Callable[[Tensor], None]:
    def backward(loss: Tensor) -> None:
        assert loss.device == GPU and loss.ndim == 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)

    return backward


def validation() -> Crossings:
    """Two batches of a validation."""
    from pretrain.titan.validate import validation_sums

    with pretend_gpu() as gpu:
        sums = validation_sums(
            gpu.put(debug_model()), [(clean_batch(), True), (clean_batch(seed=5), False)], ObjectiveConfig()
        )
        assert all(value.device == GPU for value in sums.values())
        return gpu.places()


LEVELS = Levels(shift=5.0)
LORA = LoraConfig(rank=2, alpha=4.0)
KERNEL = Kernel()
RIGHT_AND_WRONG = advantage([1.0, -1.0, 0.5, -0.5], [1.0, -1.0, 0.5, -0.5], [True, True, True, False])


def prompts(first_frame: bool = False) -> PromptBatch:
    """Two prompts, two clips each."""
    return PromptBatch(
        rows=(None, None),  # type: ignore[arg-type]
        conditioning=conditioning(4),
        groups=torch.tensor([5, 5, 9, 9]),
        sample_ids=torch.arange(4) + 100,
        video_shape=(48, 3, 4, 4),
        audio_shape=(128, 10),
        rates=RATES,
        first_frames=torch.randn(4, 48, 1, 4, 4) if first_frame else None,
    )


def sampler(steps: int, scales: GuidanceScales = NO_GUIDANCE) -> SamplerConfig:
    return SamplerConfig(solver="euler", steps=steps, guidance=scales)


def rollout(steps: int = 2, stochastic: bool = False, first_frame: bool = False) -> Crossings:
    """Rollouts of a LoRA policy: prompts from the host, clips to the host."""
    kept = StochasticSteps(kernel=KERNEL, window=1, first_steps=1) if stochastic else None
    scales = NO_GUIDANCE if stochastic else FULL
    model = inject(debug_model(), LORA)
    with pretend_gpu() as gpu:
        policy = LoraPolicy(gpu.put(model))
        plan = RolloutPlan("old", 2, 2, sampler(steps, scales), 4, kept)
        made = roll_out(policy, plan, prompts(first_frame), (0, 1), GPU)
        assert made.video.device == CPU and (made.trajectory is not None) == stochastic
        return gpu.places()


def clips(stochastic: bool = False, first_frame: bool = False) -> Rollout:
    """Clips of the debug policy, made on the CPU."""
    kept = StochasticSteps(kernel=KERNEL, window=1, first_steps=1) if stochastic else None
    policy = LoraPolicy(inject(debug_model(), LORA))
    torch.manual_seed(0)
    return roll_out(policy, RolloutPlan("old", 2, 2, sampler(2), 4, kept), prompts(first_frame), (0, 1), CPU)


def objective(name: str) -> Objective[Any]:
    """One that takes its clips as they are made here."""
    few = {"steps_per_epoch": 1, "epochs": 1, "clips_per_prompt": 2, "prompts_per_round": 2, "micro_batch": 2}
    makers: dict[str, Callable[[], Objective[Any]]] = {
        "nft": lambda: Nft(NftPhase(objective=NftConfig(levels=LEVELS), **few)),
        "awm": lambda: Awm(AwmPhase(objective=AwmConfig(levels=LEVELS), **few)),
        "rwr": lambda: Rwr(RwrPhase(objective=RwrConfig(levels=LEVELS, reference_weight=0.1), **few)),
        "grpo": lambda: Grpo(GrpoPhase(**few)),
        "grpo joint": lambda: Grpo(GrpoPhase(objective=GrpoConfig(routed=False), **few)),
        "gsb_dpo": lambda: GsbDpo(
            GsbDpoPhase(objective=GsbDpoConfig(levels=LEVELS), pairs_per_round=4, steps_per_epoch=1, epochs=1)
        ),
    }
    made = makers[name]()
    if isinstance(made, GsbDpo):
        rates = TieRates(overall=0.3, sync=0.3, voice=0.3, picture=0.3)
        made.config = replace(made.phase.objective, tie_rates=rates)
    return made


def learning(
    name: str, first_frame: bool = False, micro_batch: int = 4, on_policy: bool = False
) -> Crossings:
    """finetune's own optimizer step of an objective, from clips on the host."""
    taught = objective(name)
    batch: Any
    if name == "gsb_dpo":
        labels = torch.tensor([[1, 0, -1, 2]] * 4, dtype=torch.int8)
        batch = PreferencePairs(clips(first_frame=first_frame), clips(first_frame=first_frame), labels)
    else:
        made = clips(stochastic=name.startswith("grpo"), first_frame=first_frame)
        batch = scored(made, taught.targets(RIGHT_AND_WRONG, made.groups), on_policy)
    taught.phase = replace(taught.phase, micro_batch=micro_batch)
    model = inject(debug_model(), LORA)
    with pretend_gpu(_gradients_of(model)) as gpu:
        policy = LoraPolicy(gpu.put(model))
        trainer = Trainer(policy, OneRank(0, 1, GPU), AlignConfig())
        assert not gpu.places()
        found = trainer.learn(taught, batch, (0, 1))
        assert found["optimizer_steps"] == 1 and not found["skipped_nonfinite"]
        return gpu.places()


class OneRank(Ranks):
    """Without a process group."""

    def gathered(self, values: Tensor) -> Tensor:
        return values.cpu()

    def summed(self, values: Tensor) -> Tensor:
        return values.detach().cpu().clone()


def shapes(name: str) -> None:
    """A forward pass of a flavor at its own width, a block of each kind, without values: shapes and devices.

    Raises where a value is asked for and where a tensor is on the wrong device.
    """
    full = flavor(name)
    blocks = {field: min(getattr(full, field), 1) for field in ("num_alignment_blocks", "num_fusion_blocks")}
    given = cases()["padded, one apart, first frame"]
    wide = torch.zeros(2, 9, full.text_width)
    given = (*given[:2], replace(given[2], text=wide))
    cache_flags(*given)  # on the host, where they are known
    with device_guard(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device(GPU):
            model = build_model(replace(full, **blocks))
        answer = model(*(part.to(GPU) for part in given))
    for part, stream in zip(answer, given, strict=False):
        assert part.device == GPU and part.shape == stream.latents.shape

"""What a GPU does, scene by scene, on a pretended one: each returns the crossings between it and the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from alignment_cases import advantage, scored
from context_ranks import cases
from model_cases import audio_stream, clean_batch, conditioning, debug_model, video_stream
from pretend_gpu import GPU, PretendGpu, pretend_gpu, value_of
from torch import Tensor

from finetune.lora import LoraConfig, inject
from finetune.objectives.awm import AwmConfig, AwmPhase, Awm
from finetune.objectives.base import Objective, RolloutPlan
from finetune.objectives.grpo import Grpo, GrpoConfig, GrpoPhase
from finetune.objectives.gsb_dpo import GsbDpo, GsbDpoConfig, GsbDpoPhase, TieRates
from finetune.objectives.nft import Nft, NftConfig, NftPhase
from finetune.objectives.rwr import Rwr, RwrConfig, RwrPhase
from finetune.noising import Levels
from finetune.policy import LoraPolicy
from finetune.recipe import AlignConfig
from finetune.rollout import PromptBatch, roll_out
from finetune.sde import Kernel, StochasticSteps
from finetune.trainer import Trainer
from finetune.types import NO_LABEL, Advantage, PreferencePairs, Rollout, RolloutsWithAdvantage, take
from pretrain.data.stream.collate import CollatedBatch
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales
from pretrain.flow.solvers import Latents, SolverName
from pretrain.objective import ObjectiveConfig
from pretrain.recipe import PretrainConfig
from pretrain.sampling import LatentRates, SamplerConfig, sample
from pretrain.titan.ranks import Ranks
from pretrain.types import AVBatch, Conditioning, Stream, Task, Velocity

Crossings = dict[str, int]
RATES = LatentRates(6.0, 25.0)
CPU = torch.device("cpu")
FULL = GuidanceScales(text_video=1, text_audio=1, align_video=1, align_audio=1, timbre_video=1, timbre_audio=1)


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


def sampling(solver: SolverName, steps: int, first_frame: bool = False, scales: GuidanceScales = FULL) -> Crossings:
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

"""A few alignment-like steps on gloo ranks, each rank on its part of four clips; rank 0 leaves what came
out."""

from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pretrain.titan.run", "peft", "lora_ranks"])
CLIPS, STEPS = 4, 3
TIMEOUT_S = 200


@dataclass(frozen=True)
class Case:
    """How the model is wrapped."""

    flavor: str = "debug"
    precision: str = "float32"
    checkpointing: str = "none"
    replicas: int = 1
    rank: int = 3  # of the adapters; odd, so that two ranks hold unlike parts
    base: str = "fp32"  # lora.base


def run_case(folder: Path, world_size: int, case: Case) -> dict[str, Any]:
    """What rank 0 saved. Raises AssertionError with its log where a rank failed."""
    import torch

    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        _FORKS.Process(target=_rank, args=(rank, world_size, port, folder, case))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_S)
        if process.exitcode != 0:
            for other in ranks:
                other.kill()
    logs = "\n".join((folder / f"log.{rank}").read_text()[-2000:] for rank in range(world_size))
    assert all(process.exitcode == 0 for process in ranks), logs
    return torch.load(folder / "result.pt", weights_only=True)


def _rank(rank: int, world_size: int, port: int, folder: Path, case: Case) -> None:
    log = os.open(folder / f"log.{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"})
    import torch

    import pretrain.titan  # noqa: F401  shows torchtitan the CPU

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    result = _train(rank, world_size, folder, case)
    if rank == 0:
        torch.save(result, folder / "result.pt")
    torch.distributed.destroy_process_group()


def _policy(world_size: int, case: Case, seed: int = 0):
    from model_cases import debug_model
    from torchtitan.config import ActivationCheckpoint, JobConfig, Training
    from torchtitan.distributed import ParallelDims

    from finetune.lora import GROUPS, LoraConfig, inject
    from finetune.policy import LoraPolicy
    from pretrain.titan.parallelize import parallelize

    config = LoraConfig(rank=case.rank, alpha=6.0, targets=tuple(GROUPS), seed=seed, base=case.base)  # type: ignore[arg-type]
    model = inject(debug_model(name=case.flavor), config)
    job = JobConfig(
        training=Training(mixed_precision_param=case.precision),  # type: ignore[arg-type]
        activation_checkpoint=ActivationCheckpoint(mode=case.checkpointing),  # type: ignore[arg-type]
    )
    shards = world_size // case.replicas
    dims = ParallelDims(
        dp_replicate=case.replicas, dp_shard=shards, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=world_size
    )
    return LoraPolicy(parallelize(model, dims, job), ema_decay=0.5)


def _train(rank: int, world_size: int, folder: Path, case: Case) -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
    from torch.distributed.tensor.debug import CommDebugMode

    from finetune.adapters import gathered

    policy = _policy(world_size, case)
    result: dict[str, Any] = {"base": _answer(policy, "reference"), "start": _answer(policy, "default")}
    optimizer = torch.optim.AdamW(policy.parameters, lr=1e-2)
    losses, collectives = [], 0
    for _ in range(STEPS):
        loss = _loss(policy, range(rank, CLIPS, world_size))
        loss.backward()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total)
        result["with_gradient"] = sorted(
            name for name, value in policy.model.named_parameters() if value.grad is not None
        )
        optimizer.step()
        optimizer.zero_grad()
        _answer(policy, "old")  # leaves gathered weights, which the updates must not let anyone use again
        with CommDebugMode() as counted:
            policy.update_ema()
            policy.update_old(0.3)
        collectives += counted.get_total_counts()
    _answer(policy, "reference")
    for role in ("default", "old", "reference"):
        result[f"answer/{role}"] = _answer(policy, role)
    with policy.averaged():
        result["answer/averaged"] = _answer(policy, "default")
    result["answer/after"] = _answer(policy, "default")
    averages = {
        name: policy.ema.weights[key]
        for name, key in zip(policy.adapters["default"], policy.ema.weights, strict=True)
    }
    for name, parameters in {**policy.adapters, "ema": averages}.items():
        result[f"weights/{name}"] = gathered(parameters)
    result |= {"loss": torch.stack(losses), "collectives": collectives, "with_state": len(optimizer.state)}
    result["dtypes"] = sorted({str(state["exp_avg"].dtype) for state in optimizer.state.values()})
    state_dict_saver.save({"policy": policy.state_dict()}, checkpoint_id=folder / "state")
    other = _policy(world_size, case, seed=5)
    state = {"policy": other.state_dict()}
    state_dict_loader.load(state, checkpoint_id=folder / "state")
    other.load_state_dict(state["policy"])
    for role in ("default", "old"):
        result[f"resumed/{role}"] = _answer(other, role)
    with other.averaged():
        result["resumed/averaged"] = _answer(other, "default")
    result["resumed/updates"] = [other.old_updates, other.ema.updates]
    return result


def _clips(rows):
    import torch
    from model_cases import audio_stream, conditioning, video_stream

    from finetune.types import take

    return [
        take(whole, torch.tensor(list(rows)))
        for whole in (video_stream(CLIPS), audio_stream(CLIPS), conditioning(CLIPS))
    ]


def _answer(policy, role):
    """Of all clips, so that every rank asks the same."""
    import torch

    with torch.no_grad():
        velocity = policy.velocity(role, *_clips(range(CLIPS)))
    return torch.cat([velocity.video.flatten(), velocity.audio.flatten()])


def _loss(policy, rows):
    """This rank's part of a mean over all clips: towards 0, away from neither old nor reference."""
    video, audio, given = _clips(rows)
    default, old, reference = (
        policy.velocity(role, video, audio, given) for role in ("default", "old", "reference")
    )
    parts = [
        (mine.square() + 0.5 * (mine - theirs).square() + 0.1 * (mine - base).square())
        .flatten(1)
        .mean(1)
        .sum()
        for mine, theirs, base in zip(default, old, reference, strict=True)
    ]
    return (parts[0] + parts[1]) / CLIPS

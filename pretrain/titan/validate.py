"""Validation of the sharded model's EMA weights on the set `validation`, with fixed clips and noise, by
task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heapreplace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.data.stream.collate import collate, to_av_batch
from pretrain.data.stream.index import streams_of
from pretrain.data.stream.sample_set import SampleSet, check_sets_split, folder_of, open_sets
from pretrain.dropout import NO_DROPOUT
from pretrain.flow.path import LevelConfig
from pretrain.launch.stage_run import StageRun
from pretrain.model.flavors import flavor
from pretrain.model.shell import AVTransformer
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.schedule import StageConfig
from pretrain.storage import is_file
from pretrain.tasks import TASKS
from pretrain.titan.ema import Ema
from pretrain.titan.parallelize import reshard
from pretrain.types import AVBatch, Task

VALIDATION_SET = "validation"
_CLIPS_PER_BATCH = 8  # over all ranks


class Validator:
    """This rank's (or context group's) validation clips; idle without a set of them."""

    def __init__(self, run: StageRun, rank: int, world_size: int, device: torch.device) -> None:
        context = run.config.parallel.context
        self.run, self.rank, self.world_size, self.device = (
            run,
            rank // context,
            world_size // context,
            device,
        )
        self.clips: SampleSet | None = None
        if (
            is_file(folder_of(run.latents, VALIDATION_SET, run.places) / "manifest.json")
            and run.config.validation_samples
        ):
            stage = StageConfig(tasks={Task.T2AV: 1.0}, sets={VALIDATION_SET: 1.0}, audio_sets={})
            sets = open_sets(run.latents, stage, run.codec_id or None, places=run.places)
            # checked at start, not at the first validation
            check_sets_split(sets, flavor(run.config.flavor).patch_size, context)
            self.clips = sets[VALIDATION_SET]

    def __call__(self, model: nn.Module, ema: Ema, every_task: bool = True) -> dict[str, float]:
        """Losses of the EMA weights by `validation_losses`, each clip in each task; all ranks must call it.

        every_task: False = only the tasks that the stage draws, and T2AV, whose losses stand for all. A clip
        without references is one of TI2AV in TIA2AV too. Clips without sound, or without a picture, are in
        the tasks that generate none.
        """
        drawn = self.run.config.stage(self.run.stage).tasks
        tasks = [task for task in Task if every_task or task is Task.T2AV or drawn.get(task, 0.0) > 0]
        sums: dict[str, Tensor] = {}
        with ema.swapped_in():
            reshard(model)
            # a fresh gather of the averaged weights now, and of the trained ones afterwards
            for task in tasks:
                if not (batches := list(self._batches(task))):
                    continue
                found = validation_sums(model, batches, self.run.config.objective)  # type: ignore[arg-type]
                sums |= {f"{task}/{name}": value for name, value in found.items()}
            reshard(model)
        if not sums:
            return {}
        names = sorted(sums)  # equal on all ranks
        totals = torch.stack([sums[name] for name in names]).to(self.device)
        dist.all_reduce(totals)
        totals /= self.run.config.parallel.context
        return losses_by_task(dict(zip(names, totals.cpu(), strict=True)))

    def _batches(self, task: Task) -> Iterator[tuple[AVBatch, bool]]:
        """This rank's part of batches of one size, each once per sigma, and whether it counts."""
        if self.clips is None:
            return
        drawn = drawn_clips(self._able(task), self.run.config.validation_samples)
        for key in sorted(drawn):
            for rows, counts in parts_of_rank(drawn[key], self.rank, self.world_size):
                batch = collate([self.clips.samples[index] for index in rows], [0] * len(rows), task)
                av_batch = to_av_batch(batch)
                yield from ((av_batch, counts) for _ in SIGMA_BUCKETS)

    def _able(self, task: Task) -> dict[str, Sequence[int]]:
        """The buckets of clips that have what the task generates."""
        assert self.clips is not None
        spec, able = TASKS[task], {}
        for key, members in self.clips.buckets.items():
            video, audio = streams_of(key)
            if (video or not spec.video) and (audio or not spec.audio):
                able[key] = members
        return able


def drawn_clips(buckets: Mapping[str, Sequence[int]], number: int) -> dict[str, list[int]]:
    """`number` clips of all buckets by their sizes, in each at equal distances; all where there are no more.

    Seats by Sainte-Lague, after one for each bucket (for the `number` largest where there are more buckets).
    """
    sizes = {key: len(members) for key, members in buckets.items() if len(members)}
    if sum(sizes.values()) <= number:
        shares = sizes
    else:
        shares = dict.fromkeys(sorted(sizes, key=lambda key: (-sizes[key], key))[:number], 1)
        queue = [(-sizes[key] / 3, key) for key in shares]
        heapify(queue)
        for _ in range(number - len(shares)):
            key = queue[0][1]
            shares[key] += 1
            heapreplace(queue, (-sizes[key] / (2 * shares[key] + 1), key))
    return {
        key: [int(buckets[key][(2 * place + 1) * sizes[key] // (2 * share)]) for place in range(share)]
        for key, share in shares.items()
    }


def parts_of_rank(members: Sequence[int], rank: int, world_size: int) -> Iterator[tuple[Sequence[int], bool]]:
    """This rank's part of each batch over all ranks, and whether it counts.

    Every rank has as many parts, since collectives need them all: one without a clip of its own takes the
    batch's first, which does not count. Over the ranks each member counts once.
    """
    size = max(_CLIPS_PER_BATCH // world_size, 1)
    for start in range(0, len(members), size * world_size):
        own = members[start + rank * size : start + (rank + 1) * size]
        yield (own, True) if own else (members[start : start + 1], False)


SIGMA_BUCKETS = (0.1, 0.3, 0.5, 0.7, 0.9)  # centres; a bucket is its centre +- 0.1
VALIDATION_SEED = 20_260_530


def validation_sums(
    model: AVTransformer, batches: Iterable[tuple[AVBatch, bool]], objective: ObjectiveConfig
) -> dict[str, Tensor]:
    """Unweighted squared errors and counts of the batches that count, fp64, on the model's device.

    Keyed `video/0.1/sum`, `video/0.1/count`, ...
    Every sample is seen once, at the bucket its position gives; nothing is dropped.
    """
    config = replace(objective, levels=LevelConfig(weight="flat"), dropout=NO_DROPOUT)
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
    with torch.no_grad():
        for position, (batch, counts) in enumerate(batches):
            centre = SIGMA_BUCKETS[position % len(SIGMA_BUCKETS)]
            sigmas = torch.full((len(batch.sample_ids),), centre, device=batch.sample_ids.device)
            corrupted = corrupt(batch, config, VALIDATION_SEED, sigmas).to(device)
            result = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
            for name, total, count in (
                ("video", result.video, result.video_count),
                ("audio", result.audio, result.audio_count),
            ):
                sums[f"{name}/{centre}/sum"] += total.double() * counts
                sums[f"{name}/{centre}/count"] += count * counts
    return dict(sums)


def losses_by_task(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums over ranks, keyed TASK/video/0.1/sum and so on -> mean squared errors per element.

    `validation/{video|audio}/{sigma}` and their means `validation/{video|audio}` are those of T2AV;
    `validation/TASK/{video|audio}` is the mean over sigmas of each task by itself.
    """
    losses: dict[str, float] = {}
    for task in Task:
        own = {
            key.removeprefix(f"{task}/"): value for key, value in sums.items() if key.startswith(f"{task}/")
        }
        found = validation_losses(own)
        means: dict[str, float] = {}
        for name in ("video", "audio"):
            values = [value for key, value in found.items() if key.startswith(f"validation/{name}/")]
            if values:
                means[name] = sum(values) / len(values)
        if task is Task.T2AV:
            losses |= found | {f"validation/{name}": value for name, value in means.items()}
        losses |= {f"validation/{task}/{name}": value for name, value in means.items()}
    return losses


def validation_losses(sums: dict[str, Tensor]) -> dict[str, float]:
    """Sums over ranks -> `validation/video/0.1`: mean squared error per element; empty buckets left out."""
    buckets = sorted(key.removesuffix("/sum") for key in sums if key.endswith("/sum"))
    return {
        f"validation/{key}": float(sums[f"{key}/sum"] / sums[f"{key}/count"])
        for key in buckets
        if sums[f"{key}/count"] > 0
    }

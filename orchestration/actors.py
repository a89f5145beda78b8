"""Worker processes of an alignment (trainer ranks, rollout, rewards) as plain classes that Ray wraps.

Plain classes; Ray makes them remote.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor

from finetune.align_run import AlignRun
from finetune.scores import Scorer
from finetune.types import Advantage, Role
from orchestration.tasks import ClipTask, Origin, TaskClips, TaskScores
from pretrain.config import one_line

if TYPE_CHECKING:  # imports that would cost a reward worker seconds without use
    from finetune.policy import LoraPolicy
    from finetune.rollout import PromptBatch
    from pretrain.codecs.base import Codecs
    from pretrain.titan.ranks import Ranks

Fetch = Callable[[Any], Any]  # resolves an object reference


class TrainerRank:
    """One FSDP rank, with torchrun's environment variables. All ranks get equal calls in equal order."""

    def __init__(self, run: AlignRun, rank: int, world_size: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.run, self.rank = run, rank
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": "0",
        }  # Ray exposes only the rank's own GPU

    def address(self) -> tuple[str, int]:
        """Rendezvous (host, port), if this is rank 0."""
        return _own_address(), _free_port()

    def join(self, host: str, port: int) -> str:
        """Build this rank; returns the id of the base model.

        Waits until the same rank of an earlier group has exited, because it may still be writing.
        """
        from finetune.learner import Learner
        from pretrain.titan.ranks import join

        lock = self.run.out.with_name(f".{self.run.out.name}.rank-{self.rank}.lock")
        # not thread-local: Ray may run the actor's methods in other threads than the one that acquires it
        self._lock = FileLock(lock, thread_local=False)
        self._lock.acquire()
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        with _no_room_in_one_line(self.run):
            self.learner = Learner(self.run, join())
        return str(self.learner.described.facts["checkpoint_id"])

    def do(self, method: str, *arguments: Any) -> Any:
        """Call a method of the learner."""
        return getattr(self.learner, method)(*arguments)

    def learn(
        self, place: int, index: int, advantage: Advantage | None, on_policy: bool, *made: TaskClips
    ) -> tuple[Mapping[str, float], list[int]]:
        """Call Learner.learn with all of this rank's clips in `made`.

        Ray resolves top-level arguments only, so nested references are fetched here.
        """
        with _no_room_in_one_line(self.run):
            return self.learner.learn(place, index, advantage, [part.rollout for part in made], on_policy)


class RolloutWorker:
    """An unsharded policy that generates clips alone, with the adapter version that a task names.

    It is stateless beyond a weight cache and is built at first use, so that errors in its files surface
    unchanged.
    """

    def __init__(self, run: AlignRun, name: str, threads: int, fetch: Fetch) -> None:
        torch.set_num_threads(threads)
        self.run, self.config, self.name, self.fetch = run, run.config, name, fetch
        self.voices: dict[Path, Tensor] = {}
        self.encoded: tuple[Any, Any] = (None, None)
        self.version = ""

    @cached_property
    def ranks(self) -> Ranks:
        """A single-rank world with the casts of the learning ranks, so that numbers are equal."""
        from pretrain.titan.ranks import join

        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
        return join()

    @cached_property
    def policy(self) -> LoraPolicy:
        from finetune.learner import sharded_base
        from finetune.policy import LoraPolicy
        from pretrain.model.checkpoint import read_model_folder

        parallel = replace(self.config.parallel, replicas=1, context=1)
        alone = replace(self.run, config=replace(self.config, parallel=parallel))
        return LoraPolicy(sharded_base(alone, read_model_folder(self.run.base), self.ranks), ema_decay=0.0)

    @cached_property
    def codecs(self) -> Codecs:
        from pretrain.codecs.base import check_trained_on
        from pretrain.codecs.load import load_codecs
        from pretrain.model.checkpoint import read_model_folder

        codecs = load_codecs(self.run.codec)
        check_trained_on(codecs, self.run.codec, read_model_folder(self.run.base).facts, self.run.base)
        return codecs

    def ready(self) -> None:
        """Raises ValueError or FileNotFoundError in one line where something is missing."""
        _ = self.codecs, self.policy

    def roll_out(self, task: ClipTask, weights: list[Any]) -> TaskClips:
        """weights: a list with the reference to the adapter of `task.version`, fetched only if not loaded.

        A list because Ray would resolve a top-level reference on every call.
        """
        from finetune.rollout import roll_out

        started = time.perf_counter()
        if task.version != self.version:
            self._load(task.plan.role, self.fetch(weights[0]))
            self.version = task.version
        prompts = self._encoded(task).clips(task.start, task.end)
        with _no_room_in_one_line(self.run):
            clips = roll_out(self.policy, task.plan, prompts, task.key, self.ranks.device)
        return TaskClips(clips, task.version, Origin(self.name, os.getpid(), time.perf_counter() - started))

    def _load(self, role: Role, tensors: Mapping[str, Tensor]) -> None:
        from pretrain.model.checkpoint import put

        self.version = ""  # invalid until all tensors are loaded
        for name, parameter in self.policy.adapters[role].items():
            put(parameter, tensors[name])
        self.policy.weights_changed()

    def _encoded(self, task: ClipTask) -> PromptBatch:
        """Encode the prompts of a share once for all of its tasks."""
        from finetune.prompts import voices_of
        from finetune.rollout import encode_prompts
        from pretrain.first_frames import read_first_frames

        count = task.plan.clips_per_prompt
        mark = (task.key, task.rank, count, tuple(row.data_id for row in task.rows))
        if self.encoded[0] != mark:
            fresh = [
                row
                for row in task.rows
                if any(path is not None and path not in self.voices for path in row.reference_paths)
            ]
            self.voices |= voices_of(fresh, self.codecs)
            images = read_first_frames(task.rows)
            self.encoded = (
                mark,
                encode_prompts(task.rows, count, self.codecs, self.voices, self.config, images),
            )
        return self.encoded[1]


def _no_room_in_one_line(run: AlignRun) -> AbstractContextManager[None]:
    from finetune.room import align_ways
    from pretrain.model.shortage import in_one_line

    return in_one_line(lambda: align_ways(run))


class RewardWorker:
    """A scorer of some of the run's rewards, built at first use like a RolloutWorker."""

    def __init__(self, scorer: tuple[str, Mapping[str, Any]], name: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.given, self.name = scorer, name

    @cached_property
    def scorer(self) -> Scorer:
        from pretrain.tracking import build

        return build(*self.given, "scorer")

    def ready(self) -> None:
        """Build the scorer; raises what its constructor raises."""
        _ = self.scorer

    def score(self, task: ClipTask, made: TaskClips) -> TaskScores:
        """Raises ValueError where a reward failed, whatever it raised."""
        started, clips = time.perf_counter(), made.rollout
        try:
            scores = self.scorer.score(clips.video, clips.audio, task.prompts, task.held_out)
        except Exception as failed:
            raise ValueError(one_line(failed)) from failed
        origin = Origin(self.name, os.getpid(), time.perf_counter() - started)
        return TaskScores(scores, clips.groups, clips.sample_ids, made.version, (made.origin, origin))

    def write(self, task: ClipTask, made: TaskClips, number: int, folder: Path) -> list[Path]:
        """Write the first clips as media files."""
        return self.scorer.write(
            made.rollout.video[:number], made.rollout.audio[:number], task.prompts[:number], folder
        )


def _own_address() -> str:
    """IP address at which other nodes reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # UDP connect sends nothing; it only selects the route, and with it the local address
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

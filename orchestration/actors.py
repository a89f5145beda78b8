"""Processes of an alignment: ranks that learn, workers that roll out, workers that score. Plain classes; Ray
makes them remote."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor

from finetune.align_run import AlignRun
from finetune.recipe import GsbDpoPhase, Phase
from finetune.scores import Scorer
from finetune.types import Advantage, Role
from orchestration.tasks import ClipTask, Made, Origin, Scored
from pretrain.config import one_line

if TYPE_CHECKING:  # what a worker of rewards would wait seconds for in vain
    from finetune.checkpoint import Progress
    from finetune.policy import LoraPolicy
    from pretrain.codecs.base import Codecs
    from pretrain.titan.ranks import Ranks

Fetch = Callable[[Any], Any]  # a reference to what it refers to


class TrainerRank:
    """One FSDP rank, in the environment that torchrun would give it. All ranks get each call, in the same
    order."""

    def __init__(self, run: AlignRun, rank: int, world_size: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.run, self.rank = run, rank
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": "0",
        }  # Ray shows a rank its own GPU alone

    def address(self) -> tuple[str, int]:
        """Where the ranks can meet, if this is the first of them."""
        return _own_address(), _free_port()

    def join(self, host: str, port: int) -> str:
        """Build this rank's part; the id of the base. Waits for the same rank of an earlier group to be gone:
        it may be writing still."""
        from finetune.learner import Learner
        from pretrain.titan.ranks import join

        lock = self.run.out.with_name(f".{self.run.out.name}.rank-{self.rank}.lock")
        self._lock = FileLock(lock, thread_local=False)
        self._lock.acquire()
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        self.learner = Learner(self.run, join())
        return str(self.learner.described.facts["checkpoint_id"])

    def load(self) -> Progress:
        return self.learner.load()

    def save(self, progress: Progress) -> None:
        self.learner.save(progress)

    def begin_phase(self, place: int) -> None:
        self.learner.begin_phase(self._phase(place))

    def update_old(self, decay: float) -> None:
        self.learner.update_old(decay)

    def learn(
        self, place: int, whole: Advantage, index: int, on_policy: bool, *made: Made
    ) -> tuple[Mapping[str, float], list[int]]:
        """made: this rank's clips, all of them. Metrics, and the ids of the samples that were learned
        from."""
        from finetune.types import joined

        clips = joined([part.rollout for part in made])
        name, phase = self.run.config.phases[place]
        return self.learner.learn(name, phase, clips, whole, index, on_policy), clips.sample_ids.tolist()

    def learn_pairs(self, place: int, index: int) -> tuple[Mapping[str, float], list[int]]:
        name, phase = self.run.config.phases[place]
        assert isinstance(phase, GsbDpoPhase)
        pairs = self.learner.pairs_of(phase, index)
        return self.learner.learn_pairs(name, phase, pairs, index), pairs.first.sample_ids.tolist()

    def weights(self, role: Role) -> dict[str, Tensor] | None:
        """The adapter that rolls out, from the first rank."""
        whole = self.learner.weights(role)
        return None if self.rank else whole

    def averaged(self) -> dict[str, Tensor] | None:
        whole = self.learner.averaged()
        return None if self.rank else whole

    def keep_best(self) -> None:
        self.learner.keep_best()

    def export(self, progress: Progress) -> str:
        return self.learner.export(progress)

    def _phase(self, place: int) -> Phase:
        return self.run.config.phases[place][1]


class RolloutWorker:
    """An unsharded policy that makes clips with whatever version of the adapter a task names; a fresh one
    needs nothing else.

    It is built at first use, so that what is wrong with its files is raised as it is.
    """

    def __init__(self, run: AlignRun, name: str, threads: int, fetch: Fetch) -> None:
        torch.set_num_threads(threads)
        self.run, self.config, self.name, self.fetch = run, run.config, name, fetch
        self.voices: dict[Path, Tensor] = {}
        self.asked: tuple[Any, Any] = (None, None)
        self.version = ""

    @cached_property
    def ranks(self) -> Ranks:
        """A world of one: the casts of the ranks that learn, and so their numbers."""
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

        alone = replace(
            self.run, config=replace(self.config, parallel=replace(self.config.parallel, replicas=1))
        )
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

    def roll_out(self, task: ClipTask, weights: list[Any]) -> Made:
        """weights: the one reference to the adapter of `task.version`, fetched where another one is held."""
        from finetune.recipe import GrpoPhase
        from finetune.rollout import roll_out

        started = time.perf_counter()
        if task.version != self.version:
            self._load(task.role, self.fetch(weights[0]))
            self.version = task.version
        phase = self.config.phases[task.phase][1]
        clips = roll_out(
            self.policy,
            task.role,
            self._asked(task).clips(task.start, task.end),
            phase.sampler,
            phase.rollout_batch,
            task.key,
            self.ranks.device,
            phase if isinstance(phase, GrpoPhase) and task.stochastic else None,
        )
        return Made(clips, task.version, Origin(self.name, os.getpid(), time.perf_counter() - started))

    def _load(self, role: Role, tensors: Mapping[str, Tensor]) -> None:
        from pretrain.model.checkpoint import put

        self.version = ""  # until it is all there
        for name, parameter in self.policy.adapters[role].items():
            put(parameter, tensors[name])
        self.policy.weights_changed()

    def _asked(self, task: ClipTask) -> Any:
        """The prompts of the share are encoded once for all tasks of it."""
        from finetune.rollout import ask
        from pretrain.generate import reference_voices

        mark = (task.key, task.rank, task.clips_per_prompt)
        if self.asked[0] != mark:
            fresh = [
                row
                for row in task.rows
                if any(path is not None and path not in self.voices for path in row.reference_paths)
            ]
            self.voices |= reference_voices(fresh, self.run.prompts, self.codecs)
            self.asked = mark, ask(task.rows, task.clips_per_prompt, self.codecs, self.voices, self.config)
        return self.asked[1]


class RewardWorker:
    """A scorer of some of the run's rewards; built at first use, as a RolloutWorker is."""

    def __init__(self, scorer: tuple[str, Mapping[str, Any]], name: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.given, self.name = scorer, name

    @cached_property
    def scorer(self) -> Scorer:
        from pretrain.tracking import build

        return build(*self.given, "scorer")

    def ready(self) -> None:
        """Raises what the scorer raises when it is built."""
        _ = self.scorer

    def score(self, task: ClipTask, made: Made) -> Scored:
        """Raises ValueError where a reward failed, whatever it raised."""
        started, clips = time.perf_counter(), made.rollout
        try:
            scores = self.scorer.score(clips.video, clips.audio, task.prompts)
        except Exception as failed:
            raise ValueError(one_line(failed)) from failed
        origin = Origin(self.name, os.getpid(), time.perf_counter() - started)
        return Scored(scores, clips.groups, clips.sample_ids, made.version, (made.origin, origin))

    def write(self, task: ClipTask, made: Made, number: int, folder: Path) -> list[Path]:
        """The first clips as files a person can look at."""
        return self.scorer.write(
            made.rollout.video[:number], made.rollout.audio[:number], task.prompts[:number], folder
        )


def _own_address() -> str:
    """The address that others on the network reach this node by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing: asks which way such a packet would go
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

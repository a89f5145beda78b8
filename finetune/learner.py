"""One rank's part of the policy: what is trained, followed, saved and handed out. Every rank gets every call,
in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from finetune import checkpoint
from finetune.adapters import Adapter, gathered, merge_adapter, save_adapter
from finetune.align_run import AlignRun
from finetune.checkpoint import FOLDER, Progress
from finetune.lora import DEFAULT, base_parameters, inject, reset
from finetune.pair_batches import PairSource, open_pairs
from finetune.policy import LoraPolicy
from finetune.recipe import GsbDpoPhase, Phase
from finetune.rollout_store import open_store
from finetune.trainer import Trainer, rows_of_rank
from finetune.types import Advantage, PreferencePairs, Role, Rollout, Scored
from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.model.checkpoint import ModelFolder, load_into, open_weights, read_model_folder
from pretrain.model.flavors import build_model
from pretrain.model.shell import AVTransformer
from pretrain.titan.checkpoints import save_error
from pretrain.titan.ema import local_shard
from pretrain.titan.ranks import Ranks, shard


class Learner:
    """`best` holds the averaged weights of the best scoring where stopping early asks for them, else nothing.

    codecs: those of the run where they are at hand. Raises ValueError or FileNotFoundError in one line.
    """

    def __init__(self, run: AlignRun, ranks: Ranks, codecs: Codecs | None = None) -> None:
        self.run, self.config, self.ranks = run, run.config, ranks
        self.described = read_model_folder(run.base)
        self.policy = LoraPolicy(sharded_base(run, self.described, ranks), run.config.ema_decay)
        self.trainer = Trainer(self.policy, ranks, run.config)
        self.pairs = _pairs(run, codecs)
        averaged = self.policy.ema.weights
        self.best = (
            {name: value.detach().clone() for name, value in averaged.items()}
            if run.config.stop.patience
            else {}
        )

    def load(self) -> Progress:
        """The newest checkpoint and its phase's learning rate."""
        progress = checkpoint.load(self.run.out, self.trainer, self.best)
        if 0 <= progress.phase < len(self.config.phases):
            self.trainer.set_rate(self.config.phases[progress.phase][1])
        return progress

    def save(self, progress: Progress) -> None:
        checkpoint.save(self.run.out, self.trainer, progress, self.best, self.config.keep_last)

    def begin_phase(self, phase: Phase) -> None:
        self.policy.update_old(0.0)
        self.trainer.begin_phase(phase)

    def update_old(self, decay: float) -> None:
        self.policy.update_old(decay)

    def learn(
        self, name: str, phase: Phase, clips: Rollout, whole: Advantage, index: int, on_policy: bool = True
    ) -> Mapping[str, float]:
        """clips: this rank's; whole: the advantages of all. on_policy: they were made by the weights as they
        are."""
        batch = Scored(clips, rows_of_rank(whole, self.ranks.rank, len(clips.groups)), on_policy)
        return self.trainer.learn(name, phase, batch, phase.objective, (self.config.seed, index))  # type: ignore[attr-defined]

    def pairs_of(self, phase: GsbDpoPhase, index: int) -> PreferencePairs:
        """This rank's pairs of a round."""
        assert self.pairs is not None
        return self.pairs.of_round(phase, self.config.seed, index, self.ranks.rank, self.ranks.world_size)

    def learn_pairs(
        self, name: str, phase: GsbDpoPhase, pairs: PreferencePairs, index: int
    ) -> Mapping[str, float]:
        assert self.pairs is not None
        objective = phase.objective
        if phase.tie_shares_from_pairs:
            objective = replace(objective, tie_shares=self.pairs.shares)
        return self.trainer.learn(name, phase, pairs, objective, (self.config.seed, index))

    def weights(self, role: Role) -> dict[str, Tensor]:
        """Whole copies of the adapter that rolls out, on every rank."""
        return gathered(self.policy.adapters[role])

    def averaged(self) -> dict[str, Tensor]:
        """Whole copies of the average of `default`, on every rank."""
        with self.policy.averaged():
            return gathered(self.policy.adapters[DEFAULT])

    def keep_best(self) -> None:
        for name, value in self.best.items():
            local_shard(value).copy_(local_shard(self.policy.ema.weights[name]))

    @torch.no_grad()
    def take_best(self) -> None:
        """The averaged weights become the best that were scored, where stopping early keeps them."""
        for name, value in self.best.items():
            local_shard(self.policy.ema.weights[name]).copy_(local_shard(value))

    def export(self, progress: Progress) -> str:
        """Write out/adapter and out/model (merged) of the averaged weights on rank 0; returns the model's id
        there, "" elsewhere."""
        run = self.run
        self.take_best()
        tensors = self.averaged()
        if self.ranks.rank:
            return ""
        identity = run.identity()
        facts = {name: identity[name] for name in ("recipe_hash", "prompts", "scorer", "pairs", "chosen")}
        facts |= {"rounds": progress.rounds, "sequence": list(run.config.sequence)}
        facts |= {"best_round": progress.best_round} if self.best else {}
        base_id = str(self.described.facts["checkpoint_id"])
        adapter = Adapter(
            flavor=self.described.flavor,
            base_id=base_id,
            base_weights=run.weights,
            config=run.config.lora,
            facts=facts,
        )
        try:
            save_adapter(run.out / "adapter", tensors, adapter)
            return merge_adapter(run.base, run.out / "adapter", run.out / "model")
        except OSError as error:
            raise save_error(error, run.out / FOLDER) from error


def sharded_base(run: AlignRun, described: ModelFolder, ranks: Ranks) -> AVTransformer:
    """The base with fresh adapters, sharded before any weight is read: a rank never holds more than its part
    and one whole tensor.

    Raises FileNotFoundError or ValueError in one line where the weights are missing, damaged or of another
    size.
    """
    config = run.config
    with torch.device("meta"):
        model = build_model(described.args)
    weights = open_weights(
        run.base, run.weights, {key: value.shape for key, value in model.state_dict().items()}
    )
    inject(model, config.lora)
    shard(model, ranks, config.mixed_precision == "bf16", config.parallel)
    model.to_empty(device=ranks.device)
    load_into(base_parameters(model), weights)
    reset(model, config.lora)
    return model.eval()


def _pairs(run: AlignRun, codecs: Codecs | None) -> PairSource | None:
    if "gsb_dpo" not in run.config.sequence:
        return None
    if run.pairs is None or run.clips is None:
        raise ValueError("gsb_dpo needs preference pairs and the rollouts they speak of; give both")
    store = open_store(run.clips)
    store.check_codec(codecs or load_codecs(run.codec), run.codec)
    return open_pairs(run.pairs, store, run.config.gsb_dpo)

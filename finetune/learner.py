"""One rank's part of the policy: what is trained, averaged, saved and exported. Every rank gets every call,
in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finetune import checkpoint
from finetune.adapters import Adapter, gathered, merge_adapter, save_adapter
from finetune.align_run import AlignRun
from finetune.checkpoint import FOLDER
from finetune.lora import DEFAULT, base_parameters, inject, reset
from finetune.policy import LoraPolicy
from finetune.progress import AlignProgress
from finetune.trainer import Trainer, rows_of_rank
from finetune.types import Advantage, LearningBatch, Role, Rollout, RolloutsWithAdvantage, joined
from pretrain.codecs.base import Codecs
from pretrain.model.checkpoint import ModelFolder, load_into, open_weights, read_model_folder
from pretrain.model.flavors import build_model
from pretrain.model.shell import AVTransformer
from pretrain.titan.ema import local_shard
from pretrain.titan.manager import save_error
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
        self.objectives = run.config.objectives()
        for objective in dict.fromkeys(self.objectives):
            objective.prepare(run, codecs)
        averaged = self.policy.ema.weights
        self.best = (
            {name: value.detach().clone() for name, value in averaged.items()}
            if run.config.stop.patience
            else {}
        )

    def load(self) -> AlignProgress:
        """The newest checkpoint and its phase's learning rate."""
        progress = checkpoint.load(self.run.out, self.trainer, self.best)
        if 0 <= progress.phase < len(self.objectives):
            self.trainer.set_rate(self.objectives[progress.phase].phase.lr)
        return progress

    def save(self, progress: AlignProgress) -> None:
        checkpoint.save(self.run.out, self.trainer, progress, self.best, self.config.keep_last)

    def begin_phase(self, place: int) -> None:
        self.policy.update_old(0.0)
        self.trainer.begin_phase(self.objectives[place].phase.lr)

    def update_old(self, decay: float) -> None:
        self.policy.update_old(decay)

    def learn(
        self,
        place: int,
        index: int,
        advantage: Advantage | None,
        clips: Sequence[Rollout] = (),
        on_policy: bool = True,
    ) -> tuple[Mapping[str, float], list[int]]:
        """All optimizer steps of a round. advantage: of the clips of all ranks, None where the objective's
        batches are given; clips: this rank's; on_policy: they were made by the weights as they are. Returns
        metrics, and the ids of the samples that were learned from."""
        objective, ranks = self.objectives[place], self.ranks
        batch: LearningBatch
        if advantage is None:
            batch = objective.given_batch(self.config.seed, index, ranks.rank, ranks.world_size)
        else:
            rollout = joined(clips)
            mine = rows_of_rank(advantage, ranks.rank, len(rollout.groups))
            batch = RolloutsWithAdvantage(rollout, mine, on_policy)
        metrics = self.trainer.learn(objective, batch, (self.config.seed, index))
        return metrics, batch.sample_ids.tolist()

    def weights(self, role: Role) -> dict[str, Tensor] | None:
        """Whole copies of an adapter on the first rank, None on the others."""
        whole = gathered(self.policy.adapters[role])
        return None if self.ranks.rank else whole

    def averaged(self) -> dict[str, Tensor] | None:
        """Whole copies of the average of `default` on the first rank, None on the others."""
        with self.policy.averaged():
            return self.weights(DEFAULT)

    def keep_best(self) -> None:
        for name, value in self.best.items():
            local_shard(value).copy_(local_shard(self.policy.ema.weights[name]))

    @torch.no_grad()
    def take_best(self) -> None:
        """The averaged weights become the best that were scored, where stopping early keeps them."""
        for name, value in self.best.items():
            local_shard(self.policy.ema.weights[name]).copy_(local_shard(value))

    def export(self, progress: AlignProgress) -> str:
        """Write out/adapter and out/model (merged) of the averaged weights on rank 0; returns the model's id
        there, "" elsewhere."""
        run = self.run
        self.take_best()
        tensors = self.averaged()
        if tensors is None:
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

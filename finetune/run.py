"""What each torchrun rank does: `python -m finetune.run out/align/resolved.json` aligns a model, or goes on aligning it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune.adapters import Adapter, gathered, merge_adapter, save_adapter
from finetune.align_run import AlignRun
from finetune.checkpoint import FOLDER
from finetune.loop import Alignment
from finetune.lora import DEFAULT, base_parameters, inject, reset
from finetune.pair_batches import PairSource, open_pairs
from finetune.policy import LoraPolicy
from finetune.prompts import read_prompt_set
from finetune.rollout_store import open_store
from finetune.scoring import RankScoring
from finetune.trainer import Trainer
from pretrain.codecs.base import Codecs, check_trained_on, load_codecs
from pretrain.generate import reference_voices
from pretrain.model.checkpoint import ModelFolder, load_into, open_weights, read_model_folder
from pretrain.model.paradigms import build_model
from pretrain.model.shell import AVTransformer
from pretrain.titan.checkpoints import is_full, remove_incomplete, save_error
from pretrain.titan.ranks import Ranks, join, shard
from pretrain.torchrun import METRICS, STATE, report, write_json
from pretrain.tracking import JsonlTracker, Trackers, build, build_tracker

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def align(run: AlignRun) -> str:
    """Align (or go on aligning) on this rank; returns "finished" or "interrupted".

    Raises ValueError for unusable inputs, a reward that fails or a policy that diverges, OSError when something cannot be written.
    """
    ranks = join()
    run.config.check_ranks(ranks.world_size)
    trackers: list[Trackers] = []

    def log(row: dict[str, Any], step: int) -> None:
        written = alignment.aside.take_written()
        for tracker in trackers if row else ():
            tracker.log_metrics(row, step)
            for path in written:
                tracker.log_artifact(str(path), f"samples/{path.parent.name}")

    if ranks.rank == 0:
        remove_incomplete(run.out / FOLDER)
    dist.barrier()
    alignment, described = build_alignment(run, ranks, log)
    for number in SIGNALS:
        signal.signal(number, lambda *_: setattr(alignment.scoring, "stop_requested", True))
    resumed = alignment.resume()
    if ranks.rank == 0:
        first = JsonlTracker(run.out / METRICS, resumed if resumed or alignment.progress.baseline else -1)
        trackers.append(Trackers(first, [build_tracker(name, options) for name, options in run.trackers.items()]))
        _state(run, "running", resumed)
    try:
        status = alignment.run_rounds()
    finally:
        alignment.scoring.scorer.close()
    model_id = export(run, alignment, described) if status == "finished" else ""
    if ranks.rank == 0:
        _state(run, status, alignment.progress.rounds, model_id)
        for tracker in trackers:
            tracker.set_tags({"status": status, "model_id": model_id, "parent_model_id": str(described.facts["checkpoint_id"])})
            tracker.log_artifact(str(run.out / METRICS))
    return status


def build_alignment(run: AlignRun, ranks: Ranks, log: Any) -> tuple[Alignment, ModelFolder]:
    """Everything a rank needs, from its files. Raises ValueError or FileNotFoundError in one line."""
    config = run.config
    described = read_model_folder(run.base)
    codecs = load_codecs(run.codec)
    check_trained_on(codecs, run.codec, described.facts, run.base)
    prompts = read_prompt_set(run.prompts, config, run.chosen)
    rows = [row for some in (*prompts.train, prompts.aside) for row in some]
    voices = reference_voices(rows, run.prompts, codecs)
    model = sharded_base(run, described, ranks)
    trainer = Trainer(LoraPolicy(model, config.ema_decay), ranks, config)
    scorer = build(run.scorer[0], run.scorer[1], "scorer")
    return Alignment(run, trainer, codecs, prompts, voices, RankScoring(scorer, ranks), log, _pairs(run, codecs)), described


def sharded_base(run: AlignRun, described: ModelFolder, ranks: Ranks) -> AVTransformer:
    """The base with fresh adapters, sharded before any weight is read: a rank never holds more than its part and one whole tensor.

    Raises FileNotFoundError or ValueError in one line where the weights are missing, damaged or of another size.
    """
    config = run.config
    with torch.device("meta"):
        model = build_model(described.args)
    weights = open_weights(run.base, run.weights, {key: value.shape for key, value in model.state_dict().items()})
    inject(model, config.lora)
    shard(model, ranks, config.mixed_precision == "bf16", config.parallel)
    model.to_empty(device=ranks.device)
    load_into(base_parameters(model), weights)
    reset(model, config.lora)
    return model.eval()


def _pairs(run: AlignRun, codecs: Codecs) -> PairSource | None:
    if "gsb_dpo" not in run.config.sequence:
        return None
    if run.pairs is None or run.clips is None:
        raise ValueError("gsb_dpo needs preference pairs and the rollouts they speak of; give both")
    store = open_store(run.clips)
    store.check_codec(codecs, run.codec)
    return open_pairs(run.pairs, store, run.config.gsb_dpo)


def export(run: AlignRun, alignment: Alignment, described: ModelFolder) -> str:
    """Write out/adapter and out/model (merged) of the averaged weights on rank 0; returns the model's id. All ranks call it."""
    policy, progress = alignment.policy, alignment.progress
    alignment.aside.take_best()
    with policy.averaged():
        tensors = gathered(policy.adapters[DEFAULT])
    if alignment.ranks.rank:
        return ""
    identity = run.identity()
    facts = {name: identity[name] for name in ("recipe_hash", "prompts", "scorer", "pairs", "chosen")}
    facts |= {"rounds": progress.rounds, "sequence": list(run.config.sequence)}
    facts |= {"best_round": progress.best_round} if alignment.aside.best else {}
    base_id = str(described.facts["checkpoint_id"])
    adapter = Adapter(flavor=described.flavor, base_id=base_id, base_weights=run.weights, config=run.config.lora, facts=facts)
    try:
        save_adapter(run.out / "adapter", tensors, adapter)
        return merge_adapter(run.base, run.out / "adapter", run.out / "model")
    except OSError as error:
        raise save_error(error, run.out / FOLDER) from error


def _state(run: AlignRun, status: str, rounds: int, model_id: str = "") -> None:
    write_json(run.out / STATE, {"status": status, "stage": "align", "step": rounds, "steps": run.config.num_rounds, "model_id": model_id})


def main(path: Path) -> int:
    """Exit code of this rank: 0 finished or interrupted, 2 with one line in error.txt."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    run = AlignRun.load(path)
    try:
        align(run)
    except (ValueError, OSError) as error:
        report(save_error(error, run.out / FOLDER) if is_full(error) else error, run.out)
        # no farewell to the other ranks: they may be inside a collective, and torchrun ends them
        os._exit(2)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main(Path(sys.argv[1])))

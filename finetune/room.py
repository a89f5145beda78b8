"""What helps where a GPU has no room for a round of alignment."""

from __future__ import annotations

import os

from finetune.align_run import AlignRun
from pretrain.model.checkpoint import read_model_folder
from pretrain.titan.room import parallel_ways


def align_ways(run: AlignRun) -> list[str]:
    """Settings for a GPU without room on this rank; those of phases are what is held at a time."""
    config = run.config
    held: dict[str, str] = {}
    for name in dict.fromkeys(config.sequence):
        phase = config.phases[name]
        for field in ("micro_batch", "rollout_batch"):
            count = getattr(phase, field)
            if count > 1 and (field == "micro_batch" or name != "gsb_dpo"):  # which rolls nothing out
                held[f"align.{name}.{field}"] = f"{count // 2} (now {count})"
    ways = [f"{name}={value}" for name, value in held.items()]
    args, ranks = read_model_folder(run.base).args, int(os.environ.get("WORLD_SIZE", "1"))
    ways += parallel_ways(config.parallel, "align", args, ranks)
    if not config.lora.quantisation:
        ways.append(f"align.lora.base=int8 (or nf4, now {config.lora.base})")
    return [
        *(f"set {way}" for way in ways),
        "let the codec (`nava codec import ... --parked`) and the rewards (`parked` of align.reward_options) "
        "wait in the host's memory",
        "count it with `nava plan RECIPE --align`",
    ]

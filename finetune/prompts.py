"""Prompts of each round: seeded permutations of equal-length prompts, distributed over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.recipe import AlignConfig
from pretrain.files import read_json
from pretrain.prompt import PromptRow, read_prompts
from pretrain.randomness import generator_for


@dataclass(frozen=True)
class PromptSet:
    """`held_out` prompts are scored for early stopping and never trained on."""

    train: tuple[tuple[PromptRow, ...], ...]  # by length, the longest list first
    held_out: tuple[PromptRow, ...]


def read_prompt_set(
    path: Path, config: AlignConfig, chosen: Path | None = None, held_out: Path | None = None
) -> PromptSet:
    """`chosen`: a JSON file whose `data_ids` are the training prompts.

    `held_out`: JSONL of held-out prompts; without, they are drawn from all and excluded from training. Raises
    ValueError or FileNotFoundError in one line: prompts with a first frame, fewer than a round needs.
    """
    rows, aside = _rows(path), _rows(held_out) if held_out else []
    by_length: dict[int, list[PromptRow]] = {}
    for row in shuffled(rows, config.seed, "prompts"):
        by_length.setdefault(row.num_frames or config.num_frames, []).append(row)
    lists = sorted(by_length.values(), key=len, reverse=True)
    if not held_out:
        aside, lists[0] = lists[0][: config.stop.prompts], lists[0][config.stop.prompts :]
    if chosen is not None:
        names = set(read_json(chosen, "choose the prompts again")["data_ids"])
        lists = [[row for row in some if row.data_id in names] for some in lists]
    plans = [objective.rollout() for objective in config.objectives()]
    needed = max((plan.prompts for plan in plans if plan), default=0)
    usable = [tuple(some) for some in lists if len(some) >= max(needed, 1)]
    if not usable or len(aside) < config.stop.prompts:
        found = f"{len(lists[0])} prompts of one length beside {len(aside)} held out"
        requirement = f"a round takes {needed} and stop.prompts is {config.stop.prompts}"
        raise ValueError(f"{chosen or path}: {found}, but {requirement}; give more prompts or ask for fewer")
    return PromptSet(tuple(usable), tuple(aside))


def _rows(path: Path) -> list[PromptRow]:
    rows = read_prompts(path)
    for row in rows:
        if row.image_path:
            raise ValueError(
                f"{path}:{row.line} image_path: alignment starts from text and voices; leave prompts with a "
                "first frame out"
            )
        for reference in row.reference_paths:
            if reference is not None and not reference.is_file():
                raise FileNotFoundError(
                    f"{path}:{row.line}: {reference} does not exist; correct the path or remove it"
                )
    return rows


def prompts_of_round(prompts: PromptSet, config: AlignConfig, number: int, index: int) -> list[PromptRow]:
    """`number` prompts of round `index`.

    Each pass uses its own permutation; the remainder that does not fill a round is dropped.
    """
    weights = torch.tensor([float(len(some)) for some in prompts.train])
    choices = [
        int(torch.multinomial(weights, 1, generator=generator_for(config.seed, before, "length")))
        for before in range(index + 1)
    ]
    rows, visit = prompts.train[choices[-1]], choices[:-1].count(choices[-1])
    epoch, place = divmod(visit, len(rows) // number)
    return shuffled(rows, config.seed, "pass", epoch)[place * number : (place + 1) * number]


def share(rows: Sequence[PromptRow], rank: int, world_size: int) -> list[PromptRow]:
    """This rank's equal, contiguous part. Raises ValueError if the rows do not divide over the ranks.

    Raises ValueError where there is none.
    """
    if len(rows) % world_size:
        raise ValueError(
            f"{len(rows)} prompts do not divide over {world_size} ranks; change prompts_per_round or "
            "stop.prompts"
        )
    size = len(rows) // world_size
    return list(rows[rank * size : (rank + 1) * size])


def shuffled(rows: Sequence[PromptRow], *key: object) -> list[PromptRow]:
    return [rows[index] for index in torch.randperm(len(rows), generator=generator_for(*key)).tolist()]

"""Prompts of each round: seeded permutations of prompts of one kind, distributed over the ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.recipe import AlignConfig
from pretrain.clip_kind import ClipKind, ClipSizes, by_kind, check_memory, check_sound, kind_of
from pretrain.codecs.base import Codecs
from pretrain.files import read_json
from pretrain.first_frames import check_first_frames
from pretrain.generation.conditions import reference_voices
from pretrain.prompt import PromptRow, check_files, check_plain, read_prompts
from pretrain.randomness import generator_for


@dataclass(frozen=True)
class PromptSet:
    """`held_out` prompts are scored for early stopping and never trained on."""

    train: tuple[tuple[PromptRow, ...], ...]  # by kind, the longest list first
    held_out: tuple[PromptRow, ...]  # of any kinds
    left_out: tuple[tuple[ClipKind, int], ...] = ()  # kinds with fewer prompts than a round, and how many
    repeated: int = 0  # neither trained on nor held out: they ask for the same as a held-out prompt

    def rows(self) -> list[PromptRow]:
        return [row for some in (*self.train, self.held_out) for row in some]


def read_prompt_set(
    path: Path, config: AlignConfig, chosen: Path | None = None, held_out: Path | None = None
) -> PromptSet:
    """Training prompts of `path`, by kind, and held-out ones.

    chosen: a JSON file whose `data_ids` are the training prompts. held_out: a file of prompts, of which the
    first `stop.prompts` are held out; without it they are drawn from the most frequent kind of `path`, and no
    prompt of `path` is trained on that asks for the same as one of them (text, voices and first frame).
    Raises ValueError or FileNotFoundError in one line: files that prompts name are missing or misshapen, a
    prompt is in both files, there are fewer than a round needs.
    """
    kinds = by_kind(shuffled(_readable(path, config), config.seed, "prompts"), config)
    lists = sorted(kinds.values(), key=len, reverse=True)
    number, repeated = config.stop.prompts, 0
    if held_out is None:
        aside, lists, repeated = _drawn(lists, number)
    else:
        others = _readable(held_out, config)
        _check_apart([row for some in lists for row in some], others)
        aside = others[:number]
    if chosen is not None:
        names = set(read_json(chosen, "choose the prompts again")["data_ids"])
        lists = [[row for row in some if row.data_id in names] for some in lists]
    plans = [objective.rollout() for objective in config.objectives()]
    needed = max((plan.prompts for plan in plans if plan), default=1)
    usable = [tuple(some) for some in lists if len(some) >= needed]
    if not usable or (held_out is None and len(aside) < number):
        again = f" and {repeated} that ask for the same as those" if repeated else ""
        found = f"{max(map(len, lists))} prompts of one kind (length, size, first frame)"
        found += f" beside {len(aside)} held out{again}"
        requirement = f"a round takes {needed} and stop.prompts is {number}"
        raise ValueError(f"{chosen or path}: {found}, but {requirement}; give more prompts or ask for fewer")
    short = tuple((kind_of(some[0], config), len(some)) for some in lists if 0 < len(some) < needed)
    return PromptSet(tuple(usable), tuple(aside), short, repeated)


def report_left_out(prompts: PromptSet, path: Path) -> None:
    """Say on stderr which training prompts no round takes: too few are of their kind, or they are held out
    under another name."""
    if prompts.repeated:
        print(
            f"warning: {path}: {prompts.repeated} prompts ask for the same as a held-out prompt and are not "
            "trained on",
            file=sys.stderr,
            flush=True,
        )
    for kind, count in prompts.left_out:
        print(
            f"warning: {path}: {count} prompts of {kind} are fewer than a round takes and are left out",
            file=sys.stderr,
            flush=True,
        )


def prompts_of_round(prompts: PromptSet, config: AlignConfig, number: int, index: int) -> list[PromptRow]:
    """`number` prompts of one kind, for round `index`.

    Each pass uses its own permutation; the remainder that does not fill a round is dropped.
    """
    kind, visit = kind_of_round([len(some) for some in prompts.train], config.seed, "length", index)
    rows = prompts.train[kind]
    epoch, place = divmod(visit, len(rows) // number)
    return shuffled(rows, config.seed, "pass", epoch)[place * number : (place + 1) * number]


def kind_of_round(counts: Sequence[int], seed: int, name: str, index: int) -> tuple[int, int]:
    """(kind of round `index`, how many rounds before it had that kind), drawn in proportion to `counts`."""
    weights = torch.tensor([float(count) for count in counts])
    choices = [
        int(torch.multinomial(weights, 1, generator=generator_for(seed, before, name)))
        for before in range(index + 1)
    ]
    return choices[-1], choices[:-1].count(choices[-1])


def share(rows: Sequence[PromptRow], rank: int, world_size: int) -> list[PromptRow]:
    """This rank's equal, contiguous part. Raises ValueError if the rows do not divide over the ranks."""
    if len(rows) % world_size:
        raise ValueError(
            f"{len(rows)} prompts do not divide over {world_size} ranks; change prompts_per_round"
        )
    size = len(rows) // world_size
    return list(rows[rank * size : (rank + 1) * size])


@dataclass(frozen=True)
class KindShare:
    """A rank's part of the prompts of one kind: equally many rows on every rank, the last ones filled up.

    Sharded ranks gather weights in every forward pass, so all of them have to make the same number of passes.
    """

    rows: tuple[PromptRow, ...]
    count: int  # rows that are this rank's own; those after them only keep it in step

    @property
    def own(self) -> tuple[PromptRow, ...]:
        return self.rows[: self.count]


def shares_by_kind(
    rows: Sequence[PromptRow], sizes: ClipSizes, rank: int, world_size: int
) -> list[KindShare]:
    """This rank's part of each kind; over all ranks every row is `own` once."""
    shares = []
    for some in by_kind(rows, sizes).values():
        size = -(-len(some) // world_size)
        own = some[rank * size : (rank + 1) * size]
        filled = (*own, *[some[-1]] * (size - len(own)))
        shares.append(KindShare(filled, len(own)))
    return shares


def any_voice(rows: Iterable[PromptRow]) -> bool:
    """Some prompt has a reference voice."""
    return any(path is not None for row in rows for path in row.reference_paths)


def voices_of(rows: Iterable[PromptRow], codecs: Codecs) -> dict[Path, Tensor]:
    """Every reference of the rows embedded once, [192]; raises ValueError with the row of a bad one."""
    files: dict[Path, list[PromptRow]] = {}
    for row in rows:
        files.setdefault(row.file, []).append(row)
    voices: dict[Path, Tensor] = {}
    for file, some in files.items():
        voices |= reference_voices(some, file, codecs)
    return voices


def shuffled(rows: Sequence[PromptRow], *key: object) -> list[PromptRow]:
    return [rows[index] for index in torch.randperm(len(rows), generator=generator_for(*key)).tolist()]


def _readable(path: Path, config: AlignConfig) -> list[PromptRow]:
    """The rows of a file. Raises for a file that is missing and for a first frame of another size."""
    rows = read_prompts(path)
    check_files(rows)
    check_plain(rows, "alignment")
    check_first_frames(rows, config)
    check_memory(rows, config, config.fps)
    check_sound(rows, config, config.fps)
    return rows


def _drawn(lists: list[list[PromptRow]], number: int) -> tuple[list[PromptRow], list[list[PromptRow]], int]:
    """(`number` rows of the first list, all lists without them and without rows that ask for the same, how
    many rows are in neither). Rows that ask for the same are drawn one after the other."""
    if not number:
        return [], lists, 0
    same: dict[object, list[PromptRow]] = {}
    for row in lists[0]:
        same.setdefault(_asked(row), []).append(row)
    aside = [row for rows in same.values() for row in rows][:number]
    asked = {_asked(row) for row in aside}
    left = [[row for row in some if _asked(row) not in asked] for some in lists]
    return aside, left, sum(map(len, lists)) - sum(map(len, left)) - len(aside)


def _check_apart(train: Iterable[PromptRow], held_out: Iterable[PromptRow]) -> None:
    """Raises ValueError for a prompt of both files: its data_id, or its words, voices and first frame."""
    names: dict[str, PromptRow] = {}
    asked: dict[object, PromptRow] = {}
    for row in train:
        names[row.data_id], asked[_asked(row)] = row, row
    for row in held_out:
        if other := names.get(row.data_id):
            raise ValueError(
                f"{row.where} data_id: {row.data_id!r} is also at {other.where}; held-out prompts must not "
                "be trained on, remove one or rename it"
            )
        if other := asked.get(_asked(row)):
            raise ValueError(
                f"{row.where} prompt: the same prompt is at {other.where}; held-out prompts must not be "
                "trained on, remove one"
            )


def _asked(row: PromptRow) -> object:
    files = [path and path.resolve() for path in (row.image_path, *row.reference_paths)]
    return (row.prompt.text, *files)

"""Whether the rewards of an alignment can score its prompts, and whether they depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.scoring.clips import ClipFile
from experiments.scoring.config import first_unknown, hears
from experiments.scoring.latents import prompt_clip
from finetune.align_run import AlignRun
from finetune.prompts import PromptSet
from finetune.recipe import AlignConfig
from pretrain.data.corpus.bank import vocabulary
from pretrain.prompt import PromptRow
from rewards.catalog import check_names
from rewards.traits import lower_is_better, missing, reads_prompt

Rows = Sequence[PromptRow]
Lacking = Mapping[str, Sequence[tuple[PromptRow, str]]]  # reward -> each row and what it lacks, "" nothing


def check_rubric(run: AlignRun, prompts: PromptSet) -> list[str]:
    """Notices of rewards that some prompts cannot be scored by.

    Raises ValueError in one line: unknown rewards, judges that are weighed, a rubric that no reward of reads
    the prompt, a prompt that no reward can score, a reward that can score no prompt, a spoken word that the
    recogniser does not know.
    """
    config = run.config
    rewards, watched = list(config.rubric.routes()), list(config.rubric.watched)
    check_names([*rewards, *watched])
    check_floors(config)
    options = run.scorer[1]["options"]
    check_prompt_blind(config, options)
    training = sorted((row for some in prompts.train for row in some), key=lambda row: row.line)
    groups = [(run.prompts, training), (run.held_out or run.prompts, list(prompts.held_out))]
    notices = [notice for path, rows in groups for notice in unscored_rows(rewards, path, rows)]
    notices += unmeasured(watched, *groups[1])
    for path, rows in groups:
        for name in [*rewards, *watched]:
            if hears(name):
                check_words(name, config.reward_options.get(name) or {}, path, rows)
    return list(dict.fromkeys(notices))


def check_floors(config: AlignConfig) -> None:
    """Raises ValueError for a floor that every clip is beyond, because its sign was not turned."""
    for name, floor in config.rubric.floors.items():
        if lower_is_better(name) and floor.floor > 0:
            raise ValueError(
                f"align.rubric.floors.{name}.floor: lower is better, so values and floor are negated; give "
                f"{-floor.floor:g}"
            )


def check_prompt_blind(config: AlignConfig, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError where every rewarded item sees the clip alone, unless the rubric allows it."""
    rewards = list(config.rubric.routes())
    if config.rubric.allow_prompt_blind or any(reads_prompt(name, options.get(name)) for name in rewards):
        return
    raise ValueError(
        f"rubric: {', '.join(rewards)} {'see' if len(rewards) > 1 else 'sees'} the clip and not its prompt, "
        "which such a rubric teaches to give up; add a reward of words, voice or text, or allow it: "
        "allow_prompt_blind: true in the rubric file, align.rubric.allow_prompt_blind=true in the recipe"
    )


def unscored_rows(rewards: Sequence[str], path: Path, rows: Rows) -> list[str]:
    """A notice for each reward that some of the rows cannot be scored by.

    Raises ValueError naming the row or the reward where none is left.
    """
    lacking = _lacking(rewards, rows)
    for name, found in lacking.items():
        if rows and all(what for _, what in found):
            row, what = found[0]
            raise ValueError(
                f"{path}: reward {name} can score none of the {len(rows)} prompts: they have not {what} "
                f"(first line {row.line}); give it, or leave the reward out"
            )
    for index, row in enumerate(rows):
        if all(lacking[name][index][1] for name in rewards):
            reasons = ", ".join(f"{name} needs {lacking[name][index][1]}" for name in rewards)
            raise ValueError(
                f"{path}:{row.line}: no reward of the rubric can score this prompt ({reasons}); mend or "
                "remove the row"
            )
    return _notices(lacking, path)


def unmeasured(rewards: Sequence[str], path: Path, rows: Rows) -> list[str]:
    """A notice for each reward or judge that some of the prompts cannot be scored by."""
    return _notices(_lacking(rewards, rows), path)


def _lacking(rewards: Sequence[str], rows: Rows) -> Lacking:
    clips = [(row, prompt_clip(row)) for row in rows]
    return {name: [(row, missing(name, clip)) for row, clip in clips] for name in rewards}


def _notices(lacking: Lacking, path: Path) -> list[str]:
    return [
        _notice(name, path, without, len(found))
        for name, found in lacking.items()
        if (without := [(row, what) for row, what in found if what])
    ]


def _notice(name: str, path: Path, without: Sequence[tuple[PromptRow, str]], count: int) -> str:
    row, what = without[0]
    return (
        f"{path}: reward {name} does not apply to {len(without)} of {count} prompts, which have not {what} "
        f"(first line {row.line})"
    )


def check_words(name: str, options: Mapping[str, Any], path: Path, rows: Rows) -> None:
    """Raises ValueError naming the row whose words the recogniser of this reward cannot hear."""
    given = options.get("vocabulary")
    words = tuple(given or vocabulary())
    clips: dict[str, tuple[ClipFile, int]] = {row.data_id: (prompt_clip(row), row.line) for row in rows}
    found = first_unknown([clip for clip, _ in clips.values()], words)
    if found:
        which, line = "given" if given else "of the demo's corpus", clips[found[0].name][1]
        raise ValueError(
            f"{path}:{line}: {found[1]!r} is not among the {len(words)} words {which} that {name} can hear; "
            f"set all words that can be spoken, {name}: {{vocabulary: [...]}} under options of the rubric "
            "file or align.reward_options"
        )

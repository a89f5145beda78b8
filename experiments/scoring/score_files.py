"""Score clips from disk with several rewards: each clip is decoded once, in chunks, resumably."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runs.provenance import md5_of
from experiments.scoring.clips import ClipFile, check_attached, load_clip
from experiments.scoring.rows import full_score, full_scores, json_number, number, score_in
from experiments.scoring.score import ScoredClip, score_clips
from experiments.scoring.store import ScoreStore, StoredRow, config_id, identity
from pretrain.media.errors import MediaError
from pretrain.progress import track
from rewards.base import Reward, unscored
from rewards.catalog import CATALOG, checked_options, open_rewards
from rewards.guardrails import GuardrailLimits, flags
from rewards.recipes.preference import PreferenceOptions, needed_rewards
from rewards.rubric import Rubric
from rewards.types import Clip, Score

CHUNK_BYTES = 1 << 29  # of decoded frames and samples


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Rewards with options (`{reward: {option: value}}`), an optional rubric, and guardrail limits."""

    rewards: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rubric: Rubric | None = None
    limits: GuardrailLimits = field(default_factory=GuardrailLimits)
    batch: int = 64  # clips given to a reward at once, fewer where they are large

    def described(self) -> dict[str, Any]:
        """What scores depend on: effective options and digests of their files; not rubric or limits."""
        filled = checked_options(self.rewards, self.options)
        return {"rewards": {name: _described(options) for name, options in filled.items()}}


def score_files(files: Sequence[ClipFile], settings: ScoreSettings, out: Path) -> list[StoredRow]:
    """Score what `out` (JSONL) does not have yet; returns one row per clip in the order of `files`.

    A row: clip, path, sha256, prompt, group, scores {reward: {value, reason, parts, text, seconds}},
    guardrails, flags, and with a rubric total {value, reason, parts}; `called` {reward: name of its scores}
    where a reward of the catalog answers under another name. A clip that cannot be read is a row whose scores
    have no value but that reason. Rows of other clips stay in the file. Raises ValueError for wrong settings,
    an `out` of other settings or in use, and what a broken scorer raises.
    """
    described = settings.described()
    check_attached(files)
    with ScoreStore(out, config_id(described), described) as store:
        kept = store.kept(files)
        todo = [file for file in files if file.name not in kept]
        if todo:
            with open_rewards(settings.rewards, settings.options) as rewards:
                for chunk in _chunks(track(todo, len(todo), "clips scored"), settings.batch):
                    store.append(
                        _score_chunk(
                            chunk, dict(zip(settings.rewards, rewards, strict=True)), store.config_id
                        )
                    )
        finished = {
            row["clip"]: row for row in _with_totals([store.rows[file.name] for file in files], settings)
        }
        others = [row for name, row in store.rows.items() if name not in finished]
        store.replace([*finished.values(), *others])
        return list(finished.values())


def to_scores(rows: Sequence[StoredRow], name: str) -> list[Score]:
    """Rebuild a reward's scores from rows."""
    return [score_in(row, name) for row in rows]


def _chunks(files: Iterator[ClipFile], batch: int) -> Iterator[list[tuple[ClipFile, Clip | str]]]:
    """Decoded clips (or why one could not be decoded), up to `batch` or CHUNK_BYTES at a time."""
    chunk: list[tuple[ClipFile, Clip | str]] = []
    held = 0
    for file in files:
        try:
            clip: Clip | str = load_clip(file)
        except MediaError as error:
            clip = str(error)
        chunk.append((file, clip))
        if isinstance(clip, Clip):
            held += sum(array.nbytes for array in (clip.frames, clip.waveform) if array is not None)
        if len(chunk) >= batch or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _score_chunk(
    chunk: Sequence[tuple[ClipFile, Clip | str]], rewards: Mapping[str, Reward], config: str
) -> list[StoredRow]:
    """Rows without flags and total; an undecodable clip has its error as the reason of every score."""
    called = {
        entry: reward.name for entry, reward in rewards.items() if entry in CATALOG and entry != reward.name
    }
    named = {reward.name: reward for reward in rewards.values()}
    clips = [clip for _, clip in chunk if isinstance(clip, Clip)]
    scored = iter(score_clips(named, clips, GuardrailLimits()) if clips else ())
    rows = []
    for file, clip in chunk:
        found = next(scored) if isinstance(clip, Clip) else ScoredClip(dict.fromkeys(named, unscored(clip)))
        rows.append(
            {
                "clip": file.name,
                "path": str(file.path),
                "config": config,
                **(identity(file) if file.path.is_file() else {}),
                "prompt": file.prompt,
                "group": file.group,
                "scores": full_scores(found.scores),
                "guardrails": {name: json_number(value) for name, value in found.guardrails.items()},
                **({"called": called} if called else {}),
            }
        )
    return rows


def _with_totals(rows: Sequence[StoredRow], settings: ScoreSettings) -> list[StoredRow]:
    """Add flags and totals, which are derived from scores and may be recomputed with other settings."""
    answers = []
    for row in rows:
        kept = {key: value for key, value in row.items() if key not in ("flags", "total")}
        measured = {name: number(value) for name, value in row["guardrails"].items()}
        answers.append({**kept, "flags": list(flags(measured, settings.limits))})
    if settings.rubric is not None and rows:
        columns = {name: to_scores(rows, name) for name in rows[0]["scores"]}
        columns |= {entry: columns[name] for entry, name in rows[0].get("called", {}).items()}
        found = settings.rubric.total(columns, [row["group"] for row in rows])
        for row, total in zip(answers, found.totals, strict=True):
            entry = full_score(total)
            row["total"] = {key: entry[key] for key in ("value", "reason", "parts")}
    return answers


def _described(options: Any) -> dict[str, Any]:
    """Options with the md5 of the files and folders they name, without speed-only options."""
    if isinstance(options, Mapping):
        return dict(options)
    if isinstance(options, PreferenceOptions):
        names = needed_rewards(options, CATALOG)
        inner = checked_options(names, {name: options.options.get(name, {}) for name in names})
        return {
            "model": md5_of(Path(options.model or "")),
            "options": {name: _described(each) for name, each in inner.items()},
        }
    counted = [field.name for field in dataclasses.fields(options) if not field.metadata.get("speed_only")]
    values = {name: getattr(options, name) for name in counted}
    return {
        name: md5_of(value) if isinstance(value, Path) and value.exists() else value
        for name, value in values.items()
    }

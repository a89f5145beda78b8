"""Score clips from disk with several rewards: each clip is decoded once, in chunks, resumably."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runs.provenance import md5_of
from experiments.scoring.clips import ClipFile, check_attached, load_clip, missing_file
from experiments.scoring.faults import IsolatedReward, ReadTally, RewardBroken, Unreadable, unreadable
from experiments.scoring.rows import full_scores, json_number, score_in
from experiments.scoring.score import guarded
from experiments.scoring.store import ScoreStore, StoredRow, config_id, identity
from experiments.scoring.totals import with_totals
from pretrain.config import one_line
from pretrain.media.errors import MissingMediaError
from pretrain.progress import track
from rewards.base import Reward, unscored
from rewards.catalog import CATALOG, checked_options, open_rewards
from rewards.guardrails import GuardrailLimits
from rewards.recipes.preference import PreferenceOptions, needed_rewards
from rewards.rubric import Rubric
from rewards.types import Clip, Score

CHUNK_BYTES = 1 << 29  # of decoded frames and samples
MAX_UNREADABLE = 0.5


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Rewards with options (`{reward: {option: value}}`), an optional rubric, and guardrail limits."""

    rewards: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rubric: Rubric | None = None
    limits: GuardrailLimits = field(default_factory=GuardrailLimits)
    batch: int = 64  # clips given to a reward at once, fewer where they are large
    max_unreadable: float = MAX_UNREADABLE  # share of clips that cannot be read, beyond which a run ends

    def described(self) -> dict[str, Any]:
        """What scores depend on: effective options and digests of their files; not rubric or limits."""
        filled = checked_options(self.rewards, self.options)
        return {"rewards": {name: _described(options) for name, options in filled.items()}}


@dataclass(frozen=True)
class ReadClip:
    """A clip in memory, or why it is not, with the identity that its file had before it was read."""

    file: ClipFile
    found: Clip | Unreadable
    identity: Mapping[str, Any]


def score_files(files: Sequence[ClipFile], settings: ScoreSettings, out: Path) -> list[StoredRow]:
    """Score what `out` (JSONL) does not have yet; returns one row per clip in the order of `files`.

    A row: clip, path, sha256, prompt, group, scores {reward: {value, reason, parts, text, seconds}},
    guardrails, flags, and with a rubric total {value, reason, parts, floored, rubric, relative}; `called`
    {reward as asked for: name of its scores} where they differ, `settings` {name of scores: id of its
    options}, `mended` {what the reader filled: how much}. A clip that cannot be read, or whose reference or
    first frame cannot, is a row whose scores have no value but that reason, and `unreadable` {file, why};
    `failed` {reward: why} where a reward raised on this clip alone. Both with `again` where another run may
    do better: such rows are scored again. Rows of other clips stay in the file, with `absent` where their
    file is gone or has another name among `files`, so that readers leave them out until it is back.

    Raises ValueError for wrong settings, an `out` of other settings or in use, a reward that fails on
    clip after clip (RewardBroken) and too many clips that cannot be read (TooManyUnreadable); what is scored
    by then is kept. FileNotFoundError where all clips miss a file that they refer to.
    """
    described = settings.described()
    check_attached(files)
    with ScoreStore(out, config_id(described), described) as store:
        kept = store.kept(files)
        todo = [file for file in files if file.name not in kept]
        if todo:
            _score_missing(todo, kept, settings, store, len(files))
        rows = with_totals([store.rows[file.name] for file in files], settings.rubric, settings.limits)
        finished = {
            file.name: _present(row) | {"path": str(file.path)} for file, row in zip(files, rows, strict=True)
        }
        named = {(row["path"], row.get("request")) for row in finished.values()}
        others = [
            _present(row) | ({"absent": True} if _is_gone(row, named) else {})
            for name, row in store.rows.items()
            if name not in finished
        ]
        store.replace([*finished.values(), *others])
        return list(finished.values())


def _present(row: StoredRow) -> StoredRow:
    return {key: value for key, value in row.items() if key != "absent"}


def _is_gone(row: StoredRow, named: Collection[tuple[str, str | None]]) -> bool:
    """Of a clip that was not asked for: its file is not there, or goes by another name. `named`: (path,
    request) of those that were."""
    return not Path(row["path"]).is_file() or (row["path"], row.get("request")) in named


def _score_missing(
    todo: Sequence[ClipFile],
    kept: Mapping[str, StoredRow],
    settings: ScoreSettings,
    store: ScoreStore,
    num_clips: int,
) -> None:
    """Scores and stores the clips of `todo`, a chunk at a time."""
    known = [_reason(row) for row in kept.values() if "unreadable" in row]
    tally, num_done = ReadTally(num_clips, settings.max_unreadable, known), 0
    filled = store.settings["rewards"]
    with open_rewards(settings.rewards, settings.options) as opened:
        rewards = {
            entry: IsolatedReward(reward.name, reward)
            for entry, reward in zip(settings.rewards, opened, strict=True)
        }
        common = {
            "config": store.config_id,
            **_names(dict(zip(settings.rewards, opened, strict=True))),
            "settings": {rewards[entry].name: config_id(filled[entry])[:8] for entry in rewards},
        }
        for chunk in _chunks(track(todo, len(todo), "clips scored"), settings.batch, tally):
            store.append(_score_chunk(chunk, list(rewards.values()), common))
            num_done += len(chunk)
            if broken := next((reward.broken for reward in rewards.values() if reward.broken), None):
                raise RewardBroken(f"{broken}; what is scored is kept in {store.path}") from broken.__cause__
            if tally.full and num_done < len(todo):
                raise tally.error(store.path)


def _names(rewards: Mapping[str, Reward]) -> dict[str, Any]:
    called = {entry: reward.name for entry, reward in rewards.items() if entry != reward.name}
    return {"called": called} if called else {}


def _reason(row: StoredRow) -> str:
    return f"{row['unreadable']['file']}: {row['unreadable']['why']}"


def to_scores(rows: Sequence[StoredRow], name: str) -> list[Score]:
    """Rebuild a reward's scores from rows."""
    return [score_in(row, name) for row in rows]


def _chunks(files: Iterator[ClipFile], batch: int, tally: ReadTally) -> Iterator[list[ReadClip]]:
    """Decoded clips (or why one could not be decoded), up to `batch` or CHUNK_BYTES at a time; the last one
    where `tally` is full."""
    chunk: list[ReadClip] = []
    held = 0
    for file in files:
        clip = _read(file)
        chunk.append(clip)
        if isinstance(clip.found, Clip):
            arrays = (clip.found.frames, clip.found.waveform)
            held += sum(array.nbytes for array in arrays if array is not None)
        else:
            tally.reasons.append(clip.found.reason)
        if len(chunk) >= batch or held >= CHUNK_BYTES or tally.full:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _read(file: ClipFile) -> ReadClip:
    """The clip, or whatever went wrong with it: decoders raise what they like for a damaged file."""
    before = identity(file)
    try:
        if missing := missing_file(file):
            raise MissingMediaError(f"{missing}: no such file; correct the row or put the file there")
        return ReadClip(file, load_clip(file), before)
    except Exception as error:
        return ReadClip(file, unreadable(file, error), before)


def _score_chunk(
    chunk: Sequence[ReadClip], rewards: Sequence[IsolatedReward], common: Mapping[str, Any]
) -> list[StoredRow]:
    """Rows without flags and total; a clip that cannot be read has its error as the reason of every score."""
    clips = [read.found for read in chunk if isinstance(read.found, Clip)]
    columns = {reward.name: reward.scores(clips) if clips else ([], {}) for reward in rewards}
    rows, place = [], 0
    for read in chunk:
        row: StoredRow = {
            "clip": read.file.name,
            "path": str(read.file.path),
            **common,
            **read.identity,
            "prompt": read.file.prompt,
            "group": read.file.group,
        }
        if isinstance(read.found, Clip):
            failed = {name: found[1][place] for name, found in columns.items() if place in found[1]}
            guardrails, wrong = _guardrails(read.found)
            failed |= {"guardrails": wrong} if wrong else {}
            row["scores"] = full_scores({name: found[0][place] for name, found in columns.items()})
            row["guardrails"] = guardrails
            row |= {"mended": dict(read.found.mended)} if read.found.mended else {}
            row |= {"failed": failed, "again": True} if failed else {}
            place += 1
        else:
            row["scores"] = full_scores(dict.fromkeys(columns, unscored(read.found.reason)))
            row["guardrails"] = {}
            row["unreadable"] = {"file": read.found.file, "why": read.found.why}
            row |= {"again": True} if read.found.again else {}
        rows.append(row)
    return rows


def _guardrails(clip: Clip) -> tuple[dict[str, float | None], str]:
    """The measurements, and what was raised where they cannot be made."""
    try:
        measured, _ = guarded(clip, GuardrailLimits())
    except Exception as error:
        return {}, f"{type(error).__name__}: {one_line(error)}"
    return {name: json_number(value) for name, value in measured.items()}, ""


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

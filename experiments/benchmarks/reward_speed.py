"""Clips a second of every reward that runs offline: `python -m experiments.benchmarks.reward_speed CLIPS`.

Models are loaded once and warmed up; each reward scores the same decoded clips as one batch and one by one.
Decoding is timed apart. Clips without what a reward needs cost it little, so the share it could score stands
beside its speed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import (
    Row,
    facts,
    make_parser,
    parse,
    printed,
    repeated,
    seconds_of,
    write,
)
from experiments.scoring.clips import ClipFile, list_clips, load_clip
from experiments.scoring.config import settings_from
from rewards.base import Reward
from rewards.catalog import CATALOG, open_rewards
from rewards.guardrails import measure_guardrails
from rewards.types import Clip

COLUMNS = {
    "clips/s batched": "batched",
    "clips/s one by one": "one_by_one",
    "scored": "scored",
    "of": "of",
}


def speed(
    files: Sequence[ClipFile],
    names: Sequence[str],
    settings: Sequence[str],
    repeats: int,
    unavailable: dict[str, str],
) -> dict[str, Any]:
    """`{clips, mean_clip_seconds, decode, guardrails, rewards: {name: {batched, one_by_one, scored, of}}}`,
    speeds in clips/s.

    Rewards that cannot be built here (a network that is not trained yet, no OpenCV) go into `unavailable`
    with the reason.
    """
    clips: list[Clip] = []
    decode_s = seconds_of(lambda: clips.extend(load_clip(file) for file in files))
    clips = [_with_first_frame(clip) for clip in clips]
    guardrails_s = min(repeated(lambda: [measure_guardrails(clip) for clip in clips], repeats))
    return {
        "clips": len(clips),
        "mean_clip_seconds": round(statistics.fmean(_seconds(clip) for clip in clips), 3),
        "decode": round(len(clips) / decode_s, 2),
        "guardrails": round(len(clips) / guardrails_s, 2),
        "rewards": dict(printed(_measured(files, clips, names, settings, repeats, unavailable), COLUMNS)),
    }


def _measured(
    files: Sequence[ClipFile],
    clips: Sequence[Clip],
    names: Sequence[str],
    settings: Sequence[str],
    repeats: int,
    unavailable: dict[str, str],
) -> Iterator[Row]:
    for name in names:
        try:
            own = [setting for setting in settings if setting.startswith(f"{name}.")]
            opened = settings_from([name], None, own, files)
            with open_rewards(opened.rewards, opened.options) as (reward,):
                found = reward_speed(reward, clips, repeats)
        except (ValueError, FileNotFoundError) as error:
            unavailable[name] = str(error)
        else:
            if found["scored"]:
                yield name, found
            else:
                unavailable[name] = "none of these clips has what it needs"


def reward_speed(reward: Reward, clips: Sequence[Clip], repeats: int) -> dict[str, Any]:
    """The fastest of `repeats` passes after one that loads and compiles; copies of the sound, so that no
    cache knows them."""
    scored = sum(not score.reason for score in reward.score(clips))
    copies = iter([_altered(clips, turn) for turn in range(2 * repeats)])
    batched = min(repeated(lambda: reward.score(next(copies)), repeats, warm_up=False))
    single = min(repeated(lambda: [reward.score([clip]) for clip in next(copies)], repeats, warm_up=False))
    return {
        "batched": round(len(clips) / batched, 2),
        "one_by_one": round(len(clips) / single, 2),
        "scored": scored,
        "of": len(clips),
    }


def _with_first_frame(clip: Clip) -> Clip:
    """Its own, so that rewards which compare with an image have something to do."""
    return (
        clip
        if clip.frames is None or clip.first_frame is not None
        else dataclasses.replace(clip, first_frame=clip.frames[0])
    )


def _altered(clips: Sequence[Clip], turn: int) -> list[Clip]:
    """The clips a little quieter: encoders that remember a sound by its content must embed it again,
    references apart."""
    gain = 1.0 - 1e-3 * (turn + 1)
    return [
        clip
        if clip.waveform is None
        else dataclasses.replace(clip, waveform=clip.waveform * clip.waveform.dtype.type(gain))
        for clip in clips
    ]


def _seconds(clip: Clip) -> float:
    if clip.waveform is not None:
        return clip.waveform.shape[-1] / clip.sample_rate_hz
    return len(clip.frames) / clip.fps if clip.frames is not None else 0.0


def main() -> None:
    parser = make_parser(__doc__, out_required=False, repeats=3)
    parser.add_argument("clips", type=Path, help="what `nava score` takes")
    offline = [name for name, entry in CATALOG.items() if entry.offline]
    parser.add_argument("--rewards", nargs="+", default=offline, metavar="NAME")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="REWARD.OPTION=VALUE")
    parser.add_argument("--limit", type=int, default=32)
    options = parse(parser)
    files, unavailable = list_clips(options.clips)[: options.limit], {}
    found = facts() | speed(files, options.rewards, options.settings, options.repeats, unavailable)
    print(f"{found['clips']} clips of {found['mean_clip_seconds']} s; clips/s of", end=" ")
    print(f"decoding {found['decode']}, of guardrails {found['guardrails']}")
    for name, reason in unavailable.items():
        print(f"{name}: not measured ({reason})")
    write({**found, "unavailable": unavailable}, options.out)


if __name__ == "__main__":
    main()

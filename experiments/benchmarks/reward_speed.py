"""Clips a second of every reward that runs offline: `python -m experiments.benchmarks.reward_speed CLIPS`.

Models are loaded once and warmed up; each reward scores the same decoded clips as one batch and one by one.
Decoding is timed apart. Clips without what a reward needs cost it little, so the share it could score stands
beside its speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.facts import facts
from experiments.scoring.clips import ClipFile, list_clips, load_clip
from experiments.scoring.config import settings_from
from pretrain.files import write_json
from rewards.base import Reward
from rewards.catalog import CATALOG, open_rewards
from rewards.guardrails import measure_guardrails
from rewards.types import Clip


def speed(
    files: Sequence[ClipFile],
    names: Sequence[str],
    settings: Sequence[str],
    repeats: int,
    unavailable: dict[str, str],
) -> dict[str, Any]:
    """`{clips, seconds_of_video, decode, guardrails, rewards: {name: {batched, one_by_one, scored, of}}}`,
    speeds in clips/s.

    Rewards that cannot be built here (a network that is not trained yet, no OpenCV) go into `unavailable`
    with the reason.
    """
    start = time.perf_counter()
    clips = [load_clip(file) for file in files]
    decode_s = time.perf_counter() - start
    clips = [_with_first_frame(clip) for clip in clips]
    rewards: dict[str, Any] = {}
    for name in names:
        try:
            chosen = settings_from(
                [name], None, [setting for setting in settings if setting.startswith(f"{name}.")], files
            )
            with open_rewards(chosen.rewards, chosen.options) as (reward,):
                found = reward_speed(reward, clips, repeats)
            if found["scored"]:
                rewards[name] = found
            else:
                unavailable[name] = "none of these clips has what it needs"
        except (ValueError, FileNotFoundError) as error:
            unavailable[name] = str(error)
    return {
        "clips": len(clips),
        "mean_clip_seconds": round(statistics.fmean(_seconds(clip) for clip in clips), 3),
        "decode": round(len(clips) / decode_s, 2),
        "guardrails": round(
            len(clips)
            / min(_timed(lambda: [measure_guardrails(clip) for clip in clips]) for _ in range(repeats)),
            2,
        ),
        "rewards": rewards,
    }


def reward_speed(reward: Reward, clips: Sequence[Clip], repeats: int) -> dict[str, Any]:
    """The fastest of `repeats` passes after one that loads and compiles; copies of the sound, so that no
    cache knows them."""
    scored = sum(not score.reason for score in reward.score(clips))
    copies = [_altered(clips, turn) for turn in range(2 * repeats)]
    batched = min(_timed(lambda some=some: reward.score(some)) for some in copies[:repeats])
    single = min(
        _timed(lambda some=some: [reward.score([clip]) for clip in some]) for some in copies[repeats:]
    )
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


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    print(f"{found['hardware']}, {found['cores']} cores, {found['threads']} threads")
    print(f"{found['clips']} clips of {found['mean_clip_seconds']} s")
    print(f"{'clips/s':32} {'batched':>10} {'one by one':>11}   scored")
    for name, row in found["rewards"].items():
        print(f"{name:32} {row['batched']:10.1f} {row['one_by_one']:11.1f}   {row['scored']}/{row['of']}")
    print(
        f"{'decoding':32} {'':>10} {found['decode']:11.1f}\n{'guardrails':32} {'':>10} "
        f"{found['guardrails']:11.1f}"
    )
    for name, reason in found["unavailable"].items():
        print(f"{name}: not measured ({reason})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, help="what `nava score` takes")
    offline = [name for name, entry in CATALOG.items() if entry.offline]
    parser.add_argument("--rewards", nargs="+", default=offline, metavar="NAME")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="REWARD.OPTION=VALUE")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    unavailable: dict[str, str] = {}
    found = {
        **facts(),
        **speed(
            list_clips(options.clips)[: options.limit],
            options.rewards,
            options.settings,
            options.repeats,
            unavailable,
        ),
    }
    found["unavailable"] = unavailable
    show(found)
    if options.out:
        write_json(options.out, found, indent=1)


if __name__ == "__main__":
    main()

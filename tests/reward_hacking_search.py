"""What a model could do to please the sync reward: `python tests/reward_hacking_search.py --nets
out/syncnet --out FILE`.

Mouths of test clips (words that no network has heard) are rendered anew with motions that ask for a reward
without deserving one, and a black-box search moves a closed mouth to wherever the reward rises. Prints a
table with 95 % intervals over clips and writes JSON. Nothing but motion that follows the sound may come near
a true clip, and the search must end synchronised.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import facts
from experiments.scoring.statistics import bootstrap_mean
from pretrain.data.corpus.casting import cast
from pretrain.data.corpus.config import CorpusConfig
from pretrain.data.corpus.plan import FPS, ClipPlan
from pretrain.data.corpus.record import faces_of, openings_of, pictures
from pretrain.data.corpus.render import render_faces
from pretrain.data.corpus.sound import SAMPLE_RATE_HZ, loudness_per_frame, num_samples, soundtrack
from pretrain.data.corpus.talk import talk_sets
from pretrain.files import write_json
from pretrain.progress import track
from rewards.sync.crops import MouthBoxes
from rewards.sync.inference import Embedder
from rewards.sync.layers import MINI
from rewards.sync.separation import embedded
from rewards.sync.syncnet import load_syncnet
from rewards.sync.windows import SyncInput, num_windows, to_25_fps, windows_of_sound
from rewards.sync.zero_lag import zero_lag
from rewards.types import Clip

ROLES = ("reward", "judge")
FIRST, FRAMES = 24, 49  # the middle two seconds of a four-second clip
ROOM_NOISE_DB = -60.0
LEVELS = 64  # openings that the search can tell apart
CANDIDATES, ELITE, START_STD, SMALLEST_STD, KEPT = 24, 6, 0.35, 0.06, 0.6


@dataclass(frozen=True, eq=False)
class TrueClip:
    """A test clip before it is rendered; `openings` [97] and `sound` [N] are those of the whole clip."""

    plan: ClipPlan
    seed: int
    openings: np.ndarray
    sound: np.ndarray

    def shown(self, openings: np.ndarray, sound: np.ndarray | None = None) -> SyncInput:
        """The middle of the clip with the mouth as told, blinks included."""
        frames = pictures(self.plan, self.seed, openings[None])[FIRST : FIRST + FRAMES]
        start = round(FIRST / FPS * SAMPLE_RATE_HZ)
        heard = (self.sound if sound is None else sound)[start : start + num_samples(FRAMES)]
        return SyncInput(to_25_fps(self._cut(frames), FPS), heard)

    def levels(self) -> np.ndarray:
        """Crops uint8 [LEVELS + 1, S, S, 3] of the mouth from closed to wide."""
        openings = np.linspace(0, 1, LEVELS + 1, dtype=np.float32)[None]
        return self._cut(
            render_faces(faces_of(self.plan), self.plan.background, openings, np.zeros(openings.shape, bool))
        )

    def _cut(self, frames: np.ndarray) -> np.ndarray:
        boxes = tuple(face.mouth_box for face in faces_of(self.plan))
        return (
            MouthBoxes(MINI.image_size)
            .crops(Clip(None, SAMPLE_RATE_HZ, frames, FPS, mouth_boxes=boxes))[0]
            .pixels
        )


def true_clips(count: int, seed: int) -> list[TrueClip]:
    """The first clips of talk_test of a corpus with this seed; nothing but the speech bank is read."""
    config = dataclasses.replace(CorpusConfig(seed=seed), talk_test=count)
    clips = []
    for index, plan in enumerate(talk_sets(config, cast(config))["talk_test"]):
        clips.append(TrueClip(plan, index, openings_of(plan)[0], soundtrack(plan, index)))
    return clips


def hacks(clip: TrueClip, other: TrueClip, rng: np.random.Generator) -> dict[str, SyncInput]:
    """Every motion and sound that is tried on a clip, the true one first."""
    num = len(clip.openings)
    closed, wide = np.zeros(num, np.float32), np.ones(num, np.float32)
    room = rng.standard_normal(len(clip.sound), np.float32) * np.float32(10 ** (ROOM_NOISE_DB / 20))
    random = np.convolve(rng.uniform(0, 1, num + 2), [0.25, 0.5, 0.25], "valid").astype(np.float32)
    loudness = loudness_per_frame(clip.sound, num)
    return {
        "true": clip.shown(clip.openings),
        "closed mouth": clip.shown(closed),
        "wide open mouth": clip.shown(wide),
        "silence": clip.shown(clip.openings, room),
        "closed mouth, silence": clip.shown(closed, room),
        "random motion": clip.shown(random),
        "another clip's motion": clip.shown(other.openings),
        "reversed motion": clip.shown(reversed_middle(clip.openings)),
        "loudness alone": clip.shown(loudness / loudness.max()),
    }


def reversed_middle(openings: np.ndarray) -> np.ndarray:
    """The shown part backwards."""
    changed = openings.copy()
    changed[FIRST : FIRST + FRAMES] = changed[FIRST : FIRST + FRAMES][::-1]
    return changed


def search(
    clip: TrueClip, embedders: Mapping[str, Embedder], generations: int, rng: np.random.Generator
) -> dict[str, float]:
    """Cross-entropy search over the mouth's openings, from closed, for the reward's network; the judge sees
    the end only."""
    crops, middle = clip.levels(), slice(FIRST, FIRST + FRAMES)
    sound = clip.shown(clip.openings).sound
    floor, count = embedders["reward"].args.log_floor, num_windows(round(FRAMES / FPS * 25), len(sound))
    heard = windows_of_sound(sound, floor)[:count]

    def values(embedder: Embedder, curves: np.ndarray) -> list[Any]:
        steps = np.rint(curves * LEVELS).astype(int)
        lips = embedder.lips([crops[to_25_fps(some, FPS)][: count + 4] for some in steps])
        (a,) = embedder.sound([heard])
        return [zero_lag(v, a) for v in lips]

    mean, std = np.zeros(FRAMES), np.full(FRAMES, START_STD)
    for _ in range(generations):
        curves = np.clip(mean + std * rng.standard_normal((CANDIDATES, FRAMES)), 0, 1)
        order = np.argsort([-answer.value for answer in values(embedders["reward"], curves)])
        elite = curves[order[:ELITE]]
        mean = (1 - KEPT) * mean + KEPT * elite.mean(axis=0)
        std = np.maximum((1 - KEPT) * std + KEPT * elite.std(axis=0), SMALLEST_STD)
    found = {role: values(embedder, mean[None])[0] for role, embedder in embedders.items()}
    true = clip.openings[middle]
    lags = {lag: _correlation(mean, np.roll(true, lag), abs(lag)) for lag in range(-5, 6)}
    return {
        **{f"{role}": answer.value for role, answer in found.items()},
        "best_lag_reward": float(found["reward"].best_lag),
        "best_lag_judge": float(found["judge"].best_lag),
        "correlation_lag_0": lags[0],
        "lag_of_largest_correlation": float(max(lags, key=lambda lag: lags[lag])),
        **{f"true_{role}": values(embedder, true[None])[0].value for role, embedder in embedders.items()},
    }


def _correlation(first: np.ndarray, second: np.ndarray, edge: int) -> float:
    inner = slice(edge, len(first) - edge)
    return float(np.corrcoef(first[inner], second[inner])[0, 1])


def measure_hacks(
    clips: list[TrueClip], embedders: Mapping[str, Embedder], seed: int
) -> dict[str, dict[str, Any]]:
    """By hack and network the mean reward, and the share of clips where it reaches the reward of the true
    clip."""
    rng = np.random.default_rng(seed)
    tried = [hacks(clip, clips[(index + 1) % len(clips)], rng) for index, clip in enumerate(clips)]
    table: dict[str, dict[str, Any]] = {name: {} for name in tried[0]}
    for role, embedder in embedders.items():
        rewards = {
            name: [zero_lag(v, a) for v, a in embedded(embedder, [row[name] for row in tried])]
            for name in table
        }
        true = [answer.value for answer in rewards["true"]]
        for name, answers in rewards.items():
            values = [answer.value for answer in answers]
            reached = [float(value >= best) for value, best in zip(values, true, strict=True)]
            near = [float(value >= np.quantile(true, 0.05)) for value in values]
            table[name][role] = bootstrap_mean(values).as_json()
            table[name][f"{role}_reaches_own_true"] = bootstrap_mean(reached).as_json()
            table[name][f"{role}_above_5th_percentile_of_true"] = bootstrap_mean(near).as_json()
    return table


def print_tables(table: Mapping[str, Mapping[str, Any]], searched: Mapping[str, Mapping[str, Any]]) -> None:
    print(
        f"{'motion':24s}{'reward [95 %]':26s}{'judge [95 %]':26s}above the 5th percentile of true clips "
        "(reward, judge)"
    )
    for name, row in table.items():
        shares = ", ".join(f"{row[f'{role}_above_5th_percentile_of_true']['mean']:.2f}" for role in ROLES)
        print(f"{name:24s}{_interval(row['reward']):26s}{_interval(row['judge']):26s}{shares}")
    print(f"n = {table['true']['reward']['n']} clips")
    for name, interval in searched.items():
        print(f"search {name:32s}{_interval(interval)} n = {interval['n']}")


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", type=Path, required=True, help="folder with reward/ and judge/")
    parser.add_argument("--clips", type=int, default=104)
    parser.add_argument(
        "--searches", type=int, default=6, help="clips that are searched, about 20 s each on one core"
    )
    parser.add_argument("--generations", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and of what is drawn")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    embedders = {role: Embedder(load_syncnet(options.nets / role)) for role in ROLES}
    clips = true_clips(max(options.clips, 2), options.seed)
    table = measure_hacks(clips, embedders, options.seed)
    rng = np.random.default_rng(options.seed)
    chosen = clips[: options.searches]
    each = [
        search(clip, embedders, options.generations, rng)
        for clip in track(chosen, len(chosen), "clips searched")
    ]
    searched = {
        name: bootstrap_mean([one[name] for one in each]).as_json() for name in (each[0] if each else {})
    }
    print_tables(table, searched)
    if options.out:
        sizes = {
            "frames": FRAMES,
            "generations": options.generations,
            "candidates": CANDIDATES,
            "seed": options.seed,
        }
        content = {**facts(), **sizes, "hacks": table, "search": searched, "searches": each}
        write_json(options.out, content, indent=1)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

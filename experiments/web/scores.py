"""Scores of clips, made in the page's process one clip at a time, by rewards that are opened when needed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.scoring.clips import clip_file, load_clip
from experiments.scoring.config import reward_settings
from experiments.scoring.faults import IsolatedReward, unreadable
from experiments.scoring.options import reward_options
from experiments.scoring.rows import full_score
from pretrain.config import one_line
from rewards.base import unscored
from rewards.catalog import CATALOG, build_rewards, check_names, checked_options, metric
from rewards.recipes.base import Shared
from rewards.types import Clip, Score

MEASURED = ("wer_pocketsphinx", "sim_resemblyzer")  # words heard, voice; sync before them


@dataclass(frozen=True)
class ShownScore:
    """`score`: value, reason, parts, text as in rows of `nava score`; source: who made it."""

    reward: str
    title: str
    unit: str
    lower_is_better: bool
    source: str
    score: Mapping[str, Any]


def usual_rewards(out: Path) -> tuple[str, ...]:
    """Sync by the pipeline's network where it was trained, else by lips and loudness; words heard; voice."""
    trained = (Layout(out=out).syncnet / "reward").is_dir()
    return ("sync_mini" if trained else "lip_loudness_correlation", *MEASURED)


def checked_rewards(names: Sequence[str], settings: Sequence[str], out: Path) -> dict[str, dict[str, Any]]:
    """Options of each reward, checked. Raises ValueError or FileNotFoundError in one line."""
    wanted = tuple(dict.fromkeys(name for given in names for name in given.split(",") if name))
    check_names(wanted)
    layout = Layout(out=out)
    given = reward_settings(settings, wanted)
    options = reward_options(list(wanted), layout.corpus, layout.syncnet, given=given)
    checked_options(wanted, options)
    return options


@dataclass
class PageScorer:
    """options: of the rewards, by name. Clips wait for each other; `close` ends it."""

    options: Mapping[str, Mapping[str, Any]]
    _results: dict[str, Future[list[ShownScore]]] = field(default_factory=dict)
    _opened: dict[str, IsolatedReward | str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scores")
        self._shared = Shared(self._stack)

    def scores(
        self, job: Mapping[str, Any], files: Mapping[str, Path], asked: Mapping[str, Any]
    ) -> list[ShownScore] | None:
        """Of a clip that is here, None while they are made. asked: voices, first frame and boxes of faces."""
        id = str(job["id"])
        with self._lock:
            if id not in self._results:
                self._results[id] = self._thread.submit(self._score, dict(job), dict(files), dict(asked))
            found = self._results[id]
        return found.result() if found.done() else None

    def close(self) -> None:
        """Ends the rewards' processes; waits for the clip that is scored now."""
        self._thread.shutdown(cancel_futures=True)
        self._stack.close()

    def _score(
        self, job: Mapping[str, Any], files: Mapping[str, Path], asked: Mapping[str, Any]
    ) -> list[ShownScore]:
        voices = [path and Path(path) for path in asked.get("references", ())]
        boxes = {"mouth_boxes": asked.get("mouth_boxes", ())}
        path = files.get("video") or files["audio"]
        file = clip_file(
            str(job["id"]), path, str(job["prompt"]), boxes, voices, image=asked.get("first_frame")
        )
        try:
            clip: Clip | str = load_clip(file)
        except Exception as error:  # decoders raise what they like for a damaged file
            clip = unreadable(file, error).reason
        elsewhere = any(job.get("references", ())) and not any(voices)
        return [self._by(name, clip, elsewhere) for name in self.options]

    def _by(self, name: str, clip: Clip | str, elsewhere: bool) -> ShownScore:
        known = metric(name)
        if isinstance(clip, str):
            score = unscored(clip)
        elif elsewhere and name in CATALOG and CATALOG[name].about == "voice":
            score = unscored("its voices were sent from elsewhere; this page does not have them")
        else:
            score = self._alone(name, clip)
        url = self.options[name].get("url")
        source = f"{name}, by the service {url}" if url else f"{name}, by this page"
        return ShownScore(name, known.title, known.unit, known.lower_is_better, source, full_score(score))

    def _alone(self, name: str, clip: Clip) -> Score:
        if name not in self._opened:
            self._opened[name] = self._open(name)
        reward = self._opened[name]
        if isinstance(reward, str):
            return unscored(reward)
        try:
            return reward.scores([clip])[0][0]
        except Exception as error:  # whatever a reward of somebody's answers
            return unscored(f"reward {name} failed: {one_line(error, 300)}")

    def _open(self, name: str) -> IsolatedReward | str:
        """The reward, or why there is none."""
        try:
            (reward,) = build_rewards([name], {name: self.options[name]}, self._shared)
            return IsolatedReward(reward.name, reward)
        except Exception as error:  # missing weights, a service that is away, a package that is not there
            return one_line(error, 300)


def told(shown: ShownScore) -> str:
    """The value with its unit and direction, or why there is none."""
    score = shown.score
    if score["value"] is None:
        return f"none: {score['reason']}"
    number = f"{score['value']:.3f}{' ' if shown.unit else ''}{shown.unit}"
    silent = ", nothing heard" if "wer" in shown.reward else ""
    heard = f", heard “{score['text']}”" if score.get("text") else silent
    better = "lower" if shown.lower_is_better else "higher"
    return f"{number} ({better} is better){heard}"


def as_json(scores: Sequence[ShownScore] | None) -> list[dict[str, Any]]:
    """For a lineage; [] while they are made."""
    return [
        {"reward": one.reward, "title": one.title, "source": one.source, **one.score} for one in scores or ()
    ]

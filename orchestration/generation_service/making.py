"""Clips of one batch to files, by a model that stays in memory; no Ray."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestration.generation_service.offer import Wanted
from pretrain.config import one_line
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import ClipJob

JobOutcome = Literal["made", "refused", "disk", "dropped"]
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What workers load. adapters: folders by the names that requests give.

    checkpoint_id, adapter_ids: what the folders had when the service started, "" and {} = not compared.
    """

    model: Path
    codec: Path
    config: GenerateConfig
    adapters: Mapping[str, Path] = field(default_factory=dict)
    checkpoint_id: str = ""
    adapter_ids: Mapping[str, str] = field(default_factory=dict)
    resident: int = 1  # models with other adapters merged in that a worker keeps in memory


@dataclass(frozen=True, kw_only=True)
class MakeTask:
    """One clip of a batch. files: the stem of what is written; inputs: the folder of what it starts from."""

    name: str
    wanted: str
    inputs: Path
    files: Path


@dataclass(frozen=True, kw_only=True)
class MadeFiles:
    """Of one task: its files by variant, or why there are none."""

    name: str
    files: Mapping[str, Path] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    """made: a result for each task; refused: none, for the reason; disk: no room for the files; dropped:
    nobody wants them any more."""

    outcome: JobOutcome
    clips: Sequence[MadeFiles] = ()
    reason: str = ""


class JobDropped(Exception):
    """The batch is not wanted any more."""


class ModelReplaced(Exception):
    """A folder has another model or adapter now than when the service started, which jobs are told of."""


class BatchMaking:
    """Makes one batch at a time; `progress` and `drop` may be called from other threads."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self._makers: OrderedDict[str, Any] = OrderedDict()
        self._watch = BatchWatch()

    def load(self) -> None:
        """The model without adapters. Raises ValueError or FileNotFoundError in one line."""
        try:
            self._maker({})
        except ModelReplaced as error:
            raise ValueError(str(error)) from None

    def progress(self) -> float:
        """Share of the batch's steps that are done, 0 to 1."""
        return self._watch.share

    def drop(self) -> None:
        """Give up the batch that is being made, at its next step."""
        self._watch.dropped = True

    def make(self, tasks: Sequence[MakeTask]) -> MadeBatch:
        """The files of tasks of one kind. Raises whatever breaks a model, such as a CUDA error."""
        wanted = [Wanted.from_json(task.wanted) for task in tasks]
        self._watch = BatchWatch(steps=wanted[0].steps)
        try:
            return MadeBatch(outcome="made", clips=self._make(tasks, wanted))
        except JobDropped:
            return MadeBatch(outcome="dropped")
        except ValueError as error:
            return MadeBatch(outcome="refused", reason=one_line(error, 500))
        except OSError as error:
            if error.errno not in FULL:
                raise
            return MadeBatch(outcome="disk", reason=one_line(error, 200))

    def _make(self, tasks: Sequence[MakeTask], wanted: Sequence[Wanted]) -> list[MadeFiles]:
        from pretrain.generation.maker import ClipMaker

        loaded = self._maker(wanted[0].adapters)
        config = wanted[0].config(self.served.config)
        # voices of references are of this batch alone: a server hears ever new ones
        maker = ClipMaker(
            self._watch.watched(loaded.model), loaded.codecs, config, loaded.device, loaded.marks
        )
        reasons: dict[str, str] = {}
        jobs: list[ClipJob] = []
        for task, one in zip(tasks, wanted, strict=True):
            job = one.job(task.name, self.served.config, task.inputs)
            if reason := _reason_against(maker, job, task.inputs):
                reasons[task.name] = reason
            else:
                jobs.append(job)
        by_name = {clip.job.name: clip for clip in maker.make(jobs)} if jobs else {}
        reasons |= {name: clip.reason for name, clip in by_name.items() if clip.reason}
        return [
            MadeFiles(name=task.name, reason=reasons[task.name])
            if task.name in reasons
            else MadeFiles(name=task.name, files=_written(by_name[task.name], task.files, maker))
            for task in tasks
        ]

    def _maker(self, adapters: Mapping[str, float]) -> Any:
        from finetune.adapters import MergedAdapters, ScaledAdapter
        from pretrain.generation.maker import ClipMaker

        served = self.served
        if gone := sorted(set(adapters) - set(served.adapters)):
            raise ValueError(f"adapter {gone[0]!r} is not served any more")
        key = " ".join(f"{name}={scale!r}" for name, scale in sorted(adapters.items()))
        if key not in self._makers:
            while len(self._makers) >= max(1, served.resident):
                self._makers.popitem(last=False)
            given = tuple(ScaledAdapter(served.adapters[name], scale) for name, scale in adapters.items())
            change = MergedAdapters(served.model, served.config.weights, given)
            maker = ClipMaker.load(served.model, served.codec, served.config, change)
            _check_same(served, maker.marks, adapters)
            self._makers[key] = maker
        self._makers.move_to_end(key)
        return self._makers[key]


def _check_same(served: ServedModel, marks: Mapping[str, str], adapters: Mapping[str, float]) -> None:
    found = {served.model: (served.checkpoint_id, marks["checkpoint_id"])}
    ids = [entry.partition("=")[0] for entry in marks.get("adapters", "").split()]
    for name, id in zip(adapters, ids, strict=True):
        found[served.adapters[name]] = (served.adapter_ids.get(name, ""), id)
    for folder, (then, now) in found.items():
        if then and then != now:
            raise ModelReplaced(f"{folder}: {now} now, the service started with {then}; start it again")


@dataclass
class BatchWatch:
    """Counts the sampler's steps by the model's calls. All calls of a step get the same streams."""

    steps: int = 1
    begun: int = 0
    dropped: bool = False
    _stream: Any = None

    @property
    def share(self) -> float:
        return min(1.0, max(0, self.begun - 1) / self.steps)

    def watched(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, which raises JobDropped once that is asked for."""

        def call(video: Any, audio: Any, conditions: Any, *features: Any) -> Any:
            if self.dropped:
                raise JobDropped
            stream = audio if video is None else video
            if stream is not self._stream:
                self._stream, self.begun = stream, self.begun + 1
            return model(video, audio, conditions, *features)

        if hasattr(model, "args"):
            call.args = model.args  # type: ignore[attr-defined]
        return call


def _reason_against(maker: Any, job: ClipJob, inputs: Path) -> str:
    """Why a job's texts, voices or first frame cannot be taken, so that its batch is made without it."""
    from pretrain.first_frames import read_first_frames
    from pretrain.generation.conditions import check_texts, reference_voices

    try:
        check_texts([job.row], maker.codecs)
        maker.voices |= reference_voices([job.row], job.row.file, maker.codecs)
        read_first_frames([job.row])
    except (ValueError, OSError) as error:
        reason = one_line(error, 500).replace(f"{inputs}/", "")
        return reason.removeprefix(f"{job.row.file.name}:{job.row.line} ")
    return ""


def _written(clip: Any, stem: Path, maker: Any) -> dict[str, Path]:
    from pretrain.media.wav_marks import mark_wav
    from pretrain.media.write import write_mp4, write_wav

    rate, files = maker.codecs.audio.sample_rate_hz, {}
    marks = {**maker.marks, "data_id": clip.job.row.data_id, "seed": str(clip.job.seed)}
    if clip.frames is not None:
        files["video"] = stem.with_suffix(".mp4")
        write_mp4(files["video"], clip.frames, maker.config.fps, clip.sound, rate, marks)
    if clip.sound is not None:
        files["audio"] = stem.with_suffix(".wav")
        write_wav(files["audio"], clip.sound, rate)
        mark_wav(files["audio"], marks)
    return files

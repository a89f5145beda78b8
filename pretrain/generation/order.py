"""An order of clips: everything that a process needs to make any of its batches, and to write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.clip_kind import kind_of
from pretrain.files import path_in_row, save_tensors
from pretrain.flow.solvers import Latents
from pretrain.generation.clip_folder import ClipFolder
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import ClipJob
from pretrain.generation.maker import AS_IT_IS, ClipMaker, MadeClip, ModelChange
from pretrain.media.wav_marks import mark_wav
from pretrain.media.write import write_mp4, write_wav
from pretrain.storage import is_remote, place, writing


class ClipDone(NamedTuple):
    """What became of one clip: its index row, or the reason that there is none."""

    name: str
    row: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class ClipOrder:
    """Batches of jobs, what makes them, and where they go. Pickled to other processes.

    todo: numbers of the batches with clips that are not there; missing: names of those.
    """

    config: GenerateConfig
    model: Path
    codec: Path
    out: str  # folder or URL
    request: Mapping[str, Any]
    batches: Sequence[tuple[ClipJob, ...]]
    todo: Sequence[int]
    missing: frozenset[str]
    threads: int  # of a process on the CPU
    change: ModelChange = AS_IT_IS
    voices: Mapping[Path, Tensor] = field(default_factory=dict)
    here: Path = field(default_factory=Path.cwd)  # where relative paths of rows start

    @cached_property
    def folder(self) -> ClipFolder:
        """A process's own view of the folder, which is begun."""
        return ClipFolder(
            place(self.out), self.request, [job.name for batch in self.batches for job in batch]
        )

    def load(self, put: Callable | None = None) -> ClipMaker:
        """The model in this process; put: as `place` of `ClipMaker.load`."""
        maker = ClipMaker.load(self.model, self.codec, self.config, self.change, put)
        maker.voices |= self.voices
        return maker

    def latents(self, number: int, maker: ClipMaker, voiced: bool | None = None) -> Latents:
        """Those of a batch: what a killed process has kept, or new ones."""
        kept = None if is_remote(self.folder.place) else self.folder.parts("latents", f"{number}.safetensors")
        if kept is not None and kept.is_file() and self.folder.is_ours:
            try:
                found = load_file(kept)
                return Latents(found.get("video"), found.get("audio"))
            except (SafetensorError, OSError):
                kept.unlink(missing_ok=True)
        return maker.latents(self.batches[number], voiced)

    def keep(self, number: int, latents: Latents) -> None:
        """For a process that goes on if this one is killed while it decodes."""
        if not is_remote(self.folder.place):
            kept = self.folder.parts("latents", f"{number}.safetensors")
            with writing(kept) as path:
                save_tensors(_tensors(latents.video, latents.audio), path)

    def write(self, number: int, latents: Latents, maker: ClipMaker) -> Iterator[ClipDone]:
        """Decode a batch and write its missing clips; each is whole when it is yielded."""
        for clip in maker.decode(self.batches[number], latents):
            if clip.job.name in self.missing:
                row = self.folder.row_of(clip.job.name)  # written by a process that died before it said so
                yield ClipDone(clip.job.name, row) if row else self._write(clip, maker)
        if not is_remote(self.folder.place):
            self.folder.parts("latents", f"{number}.safetensors").unlink(missing_ok=True)

    def _write(self, clip: MadeClip, maker: ClipMaker) -> ClipDone:
        if clip.reason:
            return ClipDone(clip.job.name, {}, clip.reason)
        row = index_row(clip, maker, self._named)
        rate = maker.codecs.audio.sample_rate_hz
        files, marks = [], {**maker.marks, "data_id": clip.job.name, "seed": str(clip.job.seed)}
        if clip.frames is not None:
            with self._file(row["video"]) as path:
                write_mp4(path, clip.frames, self.config.fps, clip.sound, rate, marks)
            files.append(row["video"])
        if clip.sound is not None:
            with self._file(row["audio"]) as path:
                write_wav(path, clip.sound, rate)
                mark_wav(path, marks)
            files.append(row["audio"])
        if self.config.keep_latents:
            with self._file(row["latents"]) as path:
                save_tensors(_tensors(clip.video, clip.audio), path)
            files.append(row["latents"])
        self.folder.add(row, files)
        return ClipDone(clip.job.name, row)

    def _named(self, path: Path) -> str:
        place = self.folder.place
        return str(self.here / path) if is_remote(place) else path_in_row(path, place, self.here)

    def _file(self, name: str) -> Any:
        return writing(self.folder.place / name)


def _tensors(video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (("video", video), ("audio", audio)) if value is not None}


def index_row(clip: MadeClip, maker: ClipMaker, named: Callable[[Path], str]) -> dict[str, Any]:
    """What index.jsonl says of a clip; named: a path of its prompt there."""
    job, row, config = clip.job, clip.job.row, maker.config
    said = {
        "data_id": job.name,
        "prompt": row.prompt.text,
        "seed": job.seed,
        "video": f"{job.name}.mp4" if clip.frames is not None else "",
        "audio": f"{job.name}.wav" if clip.sound is not None else "",
        "num_frames": clip.num_frames,
        "fps": config.fps,
        "duration": clip.num_frames / config.fps,
        "reference_paths": [named(path) if path else "" for path in row.reference_paths],
        **({"image_path": named(row.image_path)} if row.image_path else {}),
        "meta": row.meta,
    }
    said |= {"task": str(row.task)} if row.task else {}
    said |= {"negative_prompt": row.negative.text} if row.negative else {}
    said |= {"prompt_id": row.data_id} if job.name != row.data_id else {}
    said |= {"reused_steps": reused} if (reused := config.sampler.reused_steps) else {}
    said |= {"latents": f"{job.name}.safetensors"} if config.keep_latents else {}
    return said


def voiced(jobs: Sequence[ClipJob]) -> bool:
    """Some clip has a reference voice."""
    return any(path is not None for job in jobs for path in job.row.reference_paths)


def streams(order: ClipOrder, number: int) -> tuple[bool, bool]:
    """(video, audio) of a batch: ranks that hold one model make batches of the same at a time."""
    kind = kind_of(order.batches[number][0].row, order.config)
    return kind.video, kind.audio


def one_process(order: ClipOrder, begin: Callable[[], None]) -> Iterator[ClipDone]:
    """Makes the batches here, one after the other; `begin` is called when the first one is sampled."""
    maker, begun = order.load(), False
    for number in order.todo:
        latents = order.latents(number, maker)
        if not begun and _finite(latents):
            begin()
            begun = True
        if begun:
            order.keep(number, latents)
        yield from order.write(number, latents, maker)


def _finite(latents: Latents) -> bool:
    return any(
        bool(part.flatten(1).isfinite().all(1).any())
        for part in (latents.video, latents.audio)
        if part is not None
    )

"""TensorBoard: event files of a run in OUT/tensorboard/RUN, with samples of clips as pictures and sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.media.read import read_media
from pretrain.media.stills import read_image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PICTURES, CLIPS = (".png", ".jpg", ".jpeg"), (".mp4", ".wav")


class TensorBoardTracker:
    """`pretrain.types.Tracker` by torch's SummaryWriter.

    Every row is flushed, so that a kill loses none. A run that goes on writes into the same folder, and the
    steps that it repeats replace those of before (`purge_step`).
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.step = folder, 0
        self._writer: SummaryWriter | None = None

    def begin(self, resume_step: int) -> None:
        """Keep steps up to `resume_step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        # one step of the file is one step of the run, and the next row comes after a kept one
        self._writer = SummaryWriter(self.folder, purge_step=resume_step + 1)
        self.step = max(resume_step, 0)

    @property
    def writer(self) -> SummaryWriter:
        if self._writer is None:
            self.begin(-1)
        assert self._writer is not None
        return self._writer

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.step = step
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_artifact(self, path: str, folder: str = "") -> None:
        """A picture, or of a clip its middle frame and its sound; other files are left out.

        A sample bears the name of its file alone, so that a slider goes through the rounds.
        """
        file = Path(path)
        name, kind = f"{folder.split('/')[0] or 'files'}/{file.stem}", file.suffix.lower()
        if kind in PICTURES:
            self.writer.add_image(name, read_image(file), self.step, dataformats="HWC")
        elif kind in CLIPS:
            clip = read_media(file, fps=None, sample_rate_hz=None, want_video=None, want_audio=None)
            if clip.frames is not None:
                frame = clip.frames[len(clip.frames) // 2]
                self.writer.add_image(name, frame, self.step, dataformats="HWC")
            if clip.waveform is not None:
                self.writer.add_audio(name, clip.waveform[None], self.step, clip.sample_rate_hz)
        self.writer.flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.writer.add_text(f"tags/{name}", value, self.step)
        self.writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

"""Clips of the fixed prompts, made by the weights in training, to look at and hear."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from finetune.sft.finetune_run import FinetuneRun
from finetune.sft.prompt_batches import FOLDER, FixedPrompts, read_batches
from pretrain.clip_files import marks_of, write_clips
from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.flow.solvers import Latents
from pretrain.launch.stage_run import parent_id
from pretrain.media.wav_marks import mark_wav
from pretrain.media.write import write_wav
from pretrain.model.shell import AVTransformer
from pretrain.sampling import LatentRates, sample
from pretrain.types import AUDIO_TOKENS_PER_S, VIDEO_FRAMES_PER_LATENT


class SampleClips:
    """Makes all clips on every rank, as a sharded model needs them all; the first rank decodes and writes."""

    def __init__(self, run: FinetuneRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.batches = read_batches(run.out / FOLDER)
        self.codecs: Codecs | None = None

    def __call__(self, model: AVTransformer, step: int) -> list[tuple[Path, str]]:
        """Files of samples/step-N with the folder that trackers get them in; none on the other ranks."""
        written: list[Path] = []
        training = model.training
        model.eval()
        for batch in self.batches:
            latents = self._sampled(model, batch)
            if dist.get_rank() == 0:
                written += self._write(batch, latents, step)
        model.train(training)
        return [(path, f"samples/step-{step:06d}") for path in written]

    def _sampled(self, model: AVTransformer, batch: FixedPrompts) -> Latents:
        noise, first = batch.noise, batch.first_frame
        assert noise.video is not None and noise.audio is not None
        return sample(
            model,
            Latents(noise.video.to(self.device), noise.audio.to(self.device)),
            batch.conditioning.to(self.device),
            LatentRates(batch.video_hz, AUDIO_TOKENS_PER_S),
            self.run.sampler,
            None if first is None else first.to(self.device),
        )

    def _write(self, batch: FixedPrompts, latents: Latents, step: int) -> list[Path]:
        assert latents.video is not None and latents.audio is not None
        if not (latents.video.isfinite().all() and latents.audio.isfinite().all()):
            return []  # the step policy and the end of the stage speak of such weights
        self.codecs = self.codecs or load_codecs(Path(self.run.codec))
        folder = self.run.out / "samples" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.mp4" for name in batch.names]
        marks = marks_of(f"{parent_id(self.run.init_from)} fine-tuned, step {step}", self.codecs)
        fps = batch.video_hz * VIDEO_FRAMES_PER_LATENT
        clips = write_clips(self.codecs, latents.video, latents.audio, fps, paths, marks)
        for path, (_, sound) in zip(paths, clips, strict=True):
            write_wav(path.with_suffix(".wav"), sound, self.codecs.audio.sample_rate_hz)
            mark_wav(path.with_suffix(".wav"), {**marks, "data_id": path.stem})
        return [file for path in paths for file in (path, path.with_suffix(".wav"))]

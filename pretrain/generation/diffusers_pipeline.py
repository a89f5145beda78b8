"""A model folder and its codec as a pipeline of diffusers (`nava export diffusers` writes its folder).

    pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
    clip = pipe("A man says: <S>hello<E>.", references=["voice.wav"], seed=0)
    clip.frames[0], clip.audio[0]

The folder's own files import these classes, so this package has to be installed. Latents are those of
`nava generate` for rows of the same prompt, seed and `data_id` in the same batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from pretrain.clip_files import marks_of
from pretrain.clip_kind import check_sound
from pretrain.codecs.load import load_codecs
from pretrain.config import nearest, override
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.solvers import Latents
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import ClipJob, batches_of, clip_jobs
from pretrain.generation.maker import ClipMaker
from pretrain.jsonl import FieldError
from pretrain.model.args import ModelArgs
from pretrain.model.feature_cache import PassFeatures
from pretrain.model.flavors import build_model
from pretrain.prompt.rows import MAX_SEED, PromptRow, prompt_row
from pretrain.sampling import lower_precision
from pretrain.types import Conditioning, Stream, Velocity

Voice = str | Path | np.ndarray | Tensor  # a file, or mono samples at 16 kHz, [N]
Picture = str | Path | Image.Image
_CALL = Path("prompt")  # where a row of a call stands, for errors


class NavaTransformerModel(ModelMixin, ConfigMixin):
    """The transformer as a component of a pipeline; `network` is the model itself."""

    @register_to_config
    def __init__(self, args: Mapping[str, Any], flavor: str = "", checkpoint_id: str = "") -> None:
        super().__init__()
        self.network = build_model(override(ModelArgs(), dict(args), "transformer/config.json"))

    @property
    def args(self) -> ModelArgs:
        return self.network.args

    def forward(
        self,
        video: Stream | None,
        audio: Stream | None,
        conditioning: Conditioning,
        features: PassFeatures | None = None,
    ) -> Velocity:
        return self.network(video, audio, conditioning, features)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> NavaTransformerModel:
        """With dtype=torch.bfloat16 (torch_dtype of older versions) as `generate.bf16`: its time path stays
        in fp32."""
        dtype = options.pop("torch_dtype", None) or options.pop("dtype", None)
        model = super().from_pretrained(path, torch_dtype=torch.float32, **options)
        if dtype not in (None, torch.float32):
            lower_precision(model.network, dtype)
        return model


class NavaCodec:
    """Text encoder, speaker encoder and the decoders of picture and sound, as a component of a pipeline."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.codecs = Path(folder), load_codecs(folder)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> NavaCodec:
        return cls(path)


@dataclass
class NavaPipelineOutput(BaseOutput):
    """One entry a clip: frames uint8 [T, H, W, 3] or images, audio float32 [channels, N] at `sampling_rate`.

    None of a modality that the task has not; latents: video [B, 48, F, h, w] and audio [B, 128, L], fp32.
    """

    frames: list[Any]
    audio: list[Any]
    latents: list[tuple[Tensor | None, Tensor | None]]
    sampling_rate: int
    fps: float


class NavaPipeline(DiffusionPipeline):
    """Prompts with speech spans, voices and first frames to pictures with sound."""

    model_cpu_offload_seq = "transformer"

    def __init__(
        self, transformer: NavaTransformerModel, codec: NavaCodec, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, codec=codec)
        self.register_to_config(settings=json.loads(json.dumps(settings or {})))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        references: Sequence[Voice | None] | Sequence[Sequence[Voice | None] | None] | None = None,
        image: Picture | Sequence[Picture | None] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance: Mapping[str, float] | None = None,
        num_inference_steps: int | None = None,
        negative_prompt: str | None = None,
        task: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        names: Sequence[str] | None = None,
        fit: str | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> NavaPipelineOutput | tuple[list[Any], list[Any]]:
        """A clip of each prompt.

        references: of one prompt, a voice for each speech span; of several prompts, a list for each. image:
        first frames. guidance: scales by name (text_audio, align_video, ...), of the rest the folder's. Noise
        is keyed by seed and name; names: default 00000, 00001, ...; to repeat a clip of `nava generate`, its
        seed and `data_id`. generator: draws the seeds, in place of `seed`. output_type: np, pil or latent,
        which decodes nothing. Raises ValueError in one line for what cannot be made.
        """
        if output_type not in ("np", "pil", "latent"):
            raise ValueError(f"output_type: expected np, pil or latent, got {output_type!r}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        config = self._config(guidance, num_inference_steps, fit)
        maker = self._maker(config)
        same = {"num_frames": num_frames, "height": height, "width": width, "task": task}
        same |= {"negative_prompt": negative_prompt}
        of_each = zip(
            prompts,
            _each("names", names, [f"{place:05d}" for place in range(len(prompts))]),
            _seeds(seed, generator, len(prompts), config.seed),
            _voice_lists(references, len(prompts)),
            _pictures(image, len(prompts)),
            strict=True,
        )
        with tempfile.TemporaryDirectory(prefix="nava-") as folder:
            rows = [
                {
                    "prompt": text,
                    "data_id": name,
                    "seed": number,
                    "spk_wavs": self._voices(maker, voices, place),
                    "image_path": _picture(picture, Path(folder) / f"{place}.png"),
                    **same,
                }
                for place, (text, name, number, voices, picture) in enumerate(of_each)
            ]
            asked = [_row(row, line, maker.voices) for line, row in enumerate(rows, start=1)]
            jobs = clip_jobs(asked, config)
            check_sound([job.row for job in jobs], config, config.fps)
            made = self._made(maker, jobs, output_type)
        return made if return_dict else (made.frames, made.audio)

    def _config(
        self, guidance: Mapping[str, float] | None, steps: int | None, fit: str | None
    ) -> GenerateConfig:
        """The folder's settings with a call's."""
        config = override(GenerateConfig(), dict(self.config["settings"]), "model_index.json settings")
        known = [field.name for field in fields(GuidanceScales)]
        for name in guidance or {}:
            if name not in known:
                raise ValueError(f"guidance: unknown scale {name!r}; {nearest(name, known)}")
        scales = replace(config.sampler.guidance, **(guidance or {}))
        sampler = replace(config.sampler, guidance=scales, steps=steps or config.sampler.steps)
        return replace(config, sampler=sampler, **({"fit": fit} if fit else {}))

    def _maker(self, config: GenerateConfig) -> ClipMaker:
        codecs = self.codec.codecs
        marks = marks_of(self.transformer.config.checkpoint_id, codecs)
        return ClipMaker(self.transformer, codecs, config, self._execution_device, marks)

    def _voices(
        self, maker: ClipMaker, voices: Sequence[Voice | None] | None, place: int
    ) -> list[str | None] | None:
        """Names of the voices; samples are embedded here, under a name of their own."""
        found: list[str | None] = []
        for span, voice in enumerate(voices or ()):
            if isinstance(voice, (np.ndarray, Tensor)):
                samples = torch.as_tensor(voice).float().cpu()
                if samples.ndim != 1:
                    raise ValueError(
                        f"references[{span}]: expected mono samples, 16 kHz, [N], got {tuple(samples.shape)}"
                    )
                name = f"samples-{place}-{span}"
                maker.voices[_CALL.parent / name] = maker.codecs.speaker.embed(samples)
                found.append(name)
            else:
                found.append(None if voice is None else str(Path(voice).absolute()))
        return found or None

    def _made(self, maker: ClipMaker, jobs: Sequence[ClipJob], output_type: str) -> NavaPipelineOutput:
        clips: dict[str, tuple[Any, Any, tuple[Tensor | None, Tensor | None]]] = {}
        batches = batches_of(jobs, maker.config)
        for number in self.progress_bar(range(len(batches))):  # type: ignore[misc]  # an iterable as tqdm's
            batch = batches[number]
            latents = maker.latents(batch)
            decoded = [] if output_type == "latent" else maker.decode(batch, latents)
            for clip in decoded:
                if clip.reason:
                    raise ValueError(f"{clip.job.name}: {clip.reason}")
            for place, job in enumerate(batch):
                clip = decoded[place] if decoded else None
                frames = clip and _shown(clip.frames, output_type)
                clips[job.name] = (frames, clip and clip.sound, _of(latents, place))
        found = [clips[job.name] for job in jobs]
        frames, audio, pairs = ([one[part] for one in found] for part in range(3))
        rate = maker.codecs.audio.sample_rate_hz
        return NavaPipelineOutput(
            frames=frames, audio=audio, latents=pairs, sampling_rate=rate, fps=maker.config.fps
        )


def _of(latents: Latents, place: int) -> tuple[Tensor | None, Tensor | None]:
    video, audio = (None if part is None else part[place] for part in (latents.video, latents.audio))
    return video, audio


def _shown(frames: np.ndarray | None, output_type: str) -> Any:
    if output_type != "pil" or frames is None:
        return frames
    return [Image.fromarray(frame) for frame in frames]


def _row(row: Mapping[str, Any], line: int, heard: Mapping[Path, Tensor]) -> PromptRow:
    """Checked as a row of a prompts file; heard: voices that are no files."""
    errors: list[FieldError] = []
    given = {key: value for key, value in row.items() if value is not None}
    found = prompt_row(given, line, _CALL, errors)
    if found is None:
        raise ValueError(f"prompt {line} {errors[0].field}: {errors[0].message}")
    for path in (found.image_path, *found.reference_paths):
        if path is not None and path not in heard and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; correct the path or leave it out")
    return found


def _seeds(
    seed: int | Sequence[int] | None, generator: torch.Generator | None, count: int, default: int
) -> list[int]:
    if generator is not None:
        if seed is not None:
            raise ValueError("seed and generator: give one of them")
        drawn = torch.randint(0, MAX_SEED, (count,), generator=generator, device=generator.device)
        return drawn.tolist()
    plain = [default if seed is None else seed] * count
    return _each("seed", seed if isinstance(seed, Sequence) else None, plain)


def _each(what: str, given: Sequence[Any] | None, default: Sequence[Any]) -> list[Any]:
    """What is given, one for each prompt as `default` is. Raises ValueError for another number."""
    found = list(default if given is None else given)
    if len(found) != len(default):
        raise ValueError(f"{what}: {len(found)} for {len(default)} prompts; give one for each")
    return found


def _voice_lists(references: Any, count: int) -> list[Any]:
    if references is None:
        return [None] * count
    nested = any(isinstance(one, (list, tuple)) for one in references)
    if not nested and count > 1:
        raise ValueError(f"references: give a list of voices for each of the {count} prompts")
    return _each("references", references if nested else [references], [None] * count)


def _pictures(image: Any, count: int) -> list[Any]:
    several = isinstance(image, (list, tuple))
    return _each("image", image if several else [image] * count, [None] * count)


def _picture(picture: Picture | None, place: Path) -> str | None:
    """The path of a first frame; an image at hand is written there, without loss."""
    if isinstance(picture, Image.Image):
        picture.convert("RGB").save(place)
        return str(place)
    return None if picture is None else str(Path(picture).absolute())

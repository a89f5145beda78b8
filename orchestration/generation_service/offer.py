"""What is served, and a request held against it before it becomes a job."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from orchestration.generation_service.fields import (
    VideoRequest,
    length_of,
    pairs_of,
    size_of,
)
from orchestration.generation_service.limits import JobLimits
from orchestration.service.limits import Refusal
from pretrain.clip_kind import check_memory, check_sound, kind_of
from pretrain.config import nearest
from pretrain.first_frames import FrameFit
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.solvers import SolverName
from pretrain.generation.beyond import beyond
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import ClipJob, clip_jobs
from pretrain.jsonl import FieldError
from pretrain.prompt import PromptRow
from pretrain.prompt.rows import prompt_row
from pretrain.types import Task, num_audio_tokens

REQUEST = Path("request")  # stands where files of prompts have their name
FIRST_FRAME_FILE, REFERENCE_FILE = "first_frame.png", "reference_{}.wav"
MOST_GUIDANCE = 100.0
# names of a row of prompts -> those of a request
_FIELDS = {"spk_wavs": "references", "image_path": "input_reference"}


@dataclass(frozen=True)
class Wanted:
    """A clip that is asked for, complete: what a worker needs besides the files.

    row: of the inference format, files by their names in the folder of the job's inputs.
    """

    row: Mapping[str, Any]
    steps: int
    solver: str
    guidance: Mapping[str, float]
    fit: str
    adapters: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()  # where it is unlike all that the model was trained on

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Wanted:
        return Wanted(**json.loads(text))

    def prompt_row(self, folder: Path = Path()) -> PromptRow:
        """With files under `folder`. Raises Refusal 422 with the field at fault."""
        errors: list[FieldError] = []
        row = prompt_row(self.row, 1, folder / REQUEST, errors)
        if row is None or errors:
            first = errors[0]
            raise Refusal(422, f"{_FIELDS.get(first.field, first.field)}: {first.message}")
        return row

    def config(self, base: GenerateConfig) -> GenerateConfig:
        """Of the batch that this clip is made in. Raises ValueError."""
        scales = dataclasses.replace(base.sampler.guidance, **self.guidance)
        solver: Any = self.solver
        sampler = dataclasses.replace(base.sampler, steps=self.steps, solver=solver, guidance=scales)
        fit: Any = self.fit
        return dataclasses.replace(base, sampler=sampler, fit=fit, seeds=())

    def job(self, name: str, base: GenerateConfig, folder: Path = Path()) -> ClipJob:
        """As generation takes it. Raises Refusal 422 for what does not go together."""
        row = self.prompt_row(folder)
        try:
            (job,) = clip_jobs([row], dataclasses.replace(base, seeds=()))
        except ValueError as error:
            reason = str(error).removeprefix(f"{row.where} ")
            for ours, theirs in _FIELDS.items():
                reason = reason.replace(ours, theirs)
            raise Refusal(422, reason) from None
        return dataclasses.replace(job, name=name)

    def kind(self, base: GenerateConfig) -> str:
        """Equal for clips that can be made in one batch."""
        kind = kind_of(self.job("clip", base).row, base)
        guidance = sorted(self.guidance.items())
        adapters = sorted(self.adapters.items())
        return json.dumps([*kind, self.steps, self.solver, guidance, self.fit, adapters])

    def cost(self, base: GenerateConfig) -> float:
        """Tokens that are sampled, times steps: in proportion to the time that it takes."""
        kind = kind_of(self.job("clip", base).row, base)
        tokens = num_audio_tokens(kind.num_frames, base.fps) if kind.audio else 0
        if kind.video:
            _, frames, height, width = kind.video_shape
            tokens += frames * height * width // 4
        return float(tokens * self.steps)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model with its adapters, and what may be asked of it."""

    name: str
    config: GenerateConfig
    adapters: tuple[str, ...] = ()
    limits: JobLimits = field(default_factory=JobLimits)
    made: int = 0  # unix seconds
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the model folder
    adapter_ids: Mapping[str, str] = field(default_factory=dict)  # by name

    @property
    def checkpoint_id(self) -> str:
        """ "" where the model's folder says none."""
        return str(self.facts.get("checkpoint_id") or "")

    def described(self) -> dict[str, Any]:
        """The entry of /v1/models."""
        config, limits = self.config, self.limits
        return {
            "id": self.name,
            "object": "model",
            "created": self.made,
            "owned_by": "nava",
            "adapters": list(self.adapters),
            "checkpoint_id": self.checkpoint_id or None,
            "adapter_ids": dict(self.adapter_ids),
            "tasks": [str(task) for task in Task],
            "trained_on": self.facts.get("trained_on"),
            "fps": config.fps,
            "defaults": {
                "seconds": round(config.num_frames / config.fps, 4),
                "num_frames": config.num_frames,
                "size": f"{config.width}x{config.height}",
                "steps": config.sampler.steps,
                "solver": config.sampler.solver,
                "guidance": dataclasses.asdict(config.sampler.guidance),
                "fit": config.fit,
                **({"reused_steps": reused} if (reused := config.sampler.reused_steps) else {}),
            },
            "limits": {
                "seconds": limits.seconds_of_clip,
                "pixels": limits.pixels_of_frame,
                "steps": limits.steps,
                "prompt_chars": limits.prompt_chars,
            },
        }

    def wanted(self, request: VideoRequest, first_frame: bool, voices: set[int]) -> Wanted:
        """Raises Refusal 422, or 404 for another model; nothing of what is asked for is changed silently."""
        if request.model is not None and request.model != self.name:
            raise Refusal(
                404,
                f"model: {request.model[:80]!r} is not served here; it is {self.name!r}",
                code="model_not_found",
            )
        if len(request.prompt) > self.limits.prompt_chars:
            raise Refusal(422, f"prompt: more than {self.limits.prompt_chars} characters; make it shorter")
        for name in ("solver", "fit", "task", "data_id"):
            if getattr(request, name) == "":
                raise Refusal(422, f"{name}: empty; give one, or leave it out")
        if request.negative_prompt == "" and self.config.negative_prompt:
            raise Refusal(422, "negative_prompt: empty, and this service has one for all; give another one")
        wanted = Wanted(
            row=self._row(request, first_frame, voices),
            steps=self._steps(request),
            solver=_one_of("solver", request.solver or self.config.sampler.solver, get_args(SolverName)),
            guidance=self._guidance(request),
            fit=_one_of("fit", request.fit or self.config.fit, get_args(FrameFit)),
            adapters=self._adapters(request),
        )
        job = wanted.job("clip", self.config)
        row = job.row
        for name, check in (("size", check_memory), ("seconds", check_sound)):
            try:
                check([row], self.config, self.config.fps)
            except ValueError as error:
                raise Refusal(422, f"{name}: {str(error).removeprefix(f'{row.where}: ')}") from None
        if (row.height or 0) * (row.width or 0) > self.limits.pixels_of_frame:
            raise Refusal(
                422, f"size: {row.width}x{row.height} pixels; at most {self.limits.pixels_of_frame} are made"
            )
        told = beyond([job], self.config, self.facts)
        named = {**_FIELDS, "width": "size", "num_frames": "seconds"}
        warnings = [f"{named.get(one['field'], one['field'])}: {one['message']}" for one in told]
        return dataclasses.replace(wanted, warnings=warnings)

    def _row(self, request: VideoRequest, first_frame: bool, voices: set[int]) -> dict[str, Any]:
        width, height = size_of(request, (self.config.width, self.config.height))
        frames = length_of(request, self.config.fps, self.config.num_frames, self.limits.seconds_of_clip)
        named = [
            REFERENCE_FILE.format(i) if i in voices else None for i in range(max(voices, default=-1) + 1)
        ]
        row: dict[str, Any] = {
            "prompt": request.prompt,
            "data_id": request.data_id or "clip",
            "num_frames": frames,
            "width": width,
            "height": height,
            "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
        }
        row |= {"spk_wavs": named} if named else {}
        row |= {"image_path": FIRST_FRAME_FILE} if first_frame else {}
        row |= {"task": request.task} if request.task else {}
        row |= {"negative_prompt": request.negative_prompt} if request.negative_prompt else {}
        return row

    def _steps(self, request: VideoRequest) -> int:
        if request.steps is not None and request.num_inference_steps is not None:
            raise Refusal(422, "steps: stands beside num_inference_steps; give one of them")
        given = request.num_inference_steps if request.steps is None else request.steps
        steps = self.config.sampler.steps if given is None else given
        if not 1 <= steps <= self.limits.steps:
            raise Refusal(422, f"steps: {steps}; from 1 to {self.limits.steps} are made")
        return steps

    def _guidance(self, request: VideoRequest) -> dict[str, float]:
        scales = pairs_of(request.guidance, "guidance", None)
        known = [one.name for one in dataclasses.fields(GuidanceScales)]
        for name, scale in scales.items():
            if name not in known:
                raise Refusal(422, f"guidance: unknown name {name[:40]!r}; {nearest(name[:40], known)}")
            if not abs(scale) <= MOST_GUIDANCE:
                raise Refusal(422, f"guidance: {name} {scale:g}; at most {MOST_GUIDANCE:g} either way")
        if request.guidance_scale is None:
            return dict(sorted(scales.items()))
        if {"text_video", "text_audio"} & scales.keys():
            raise Refusal(422, "guidance_scale: stands beside guidance by text; give one of them")
        if not 1.0 <= request.guidance_scale <= MOST_GUIDANCE:
            raise Refusal(
                422, f"guidance_scale: {request.guidance_scale:g}; from 1 (none) to {MOST_GUIDANCE:g}"
            )
        text = request.guidance_scale - 1.0
        return dict(sorted({**scales, "text_video": text, "text_audio": text}.items()))

    def _adapters(self, request: VideoRequest) -> dict[str, float]:
        found = pairs_of(request.adapters, "adapters", 1.0)
        for name, scale in found.items():
            if name not in self.adapters:
                known = nearest(name[:80], self.adapters) if self.adapters else "this service has none"
                raise Refusal(422, f"adapters: {name[:80]!r} is not served; {known}")
            if not (math.isfinite(scale) and abs(scale) <= 10.0):
                raise Refusal(422, f"adapters: {name}={scale:g}; a scale is at most 10 either way")
        return dict(sorted(found.items()))


def _one_of(field_name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise Refusal(422, f"{field_name}: unknown {value[:40]!r}; {nearest(value[:40], known)}")
    return value

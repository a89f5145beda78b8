"""Nodes: connect, adapter, sample, decode, save. All work is done by `nava serve generate`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from .media import frames_of, png_of, sound_of, wav_of
from .service import Job, Service, ServiceError, connected

CATEGORY = "NAVA"
VOICES = 4
AS_GIVEN = "as given"  # the task that follows from what is connected
TASKS = (AS_GIVEN, "T2AV", "TI2AV", "TIA2AV", "T2A", "T2V")
Inputs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class NavaClip:
    """A finished clip, as files: mp4 with sound, and wav; None where its task makes none."""

    job: Job
    video: bytes | None
    audio: bytes | None


class NavaConnect:
    """Where the service is."""

    CATEGORY: ClassVar[str] = CATEGORY
    FUNCTION: ClassVar[str] = "connect"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("NAVA_SERVER",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("server",)
    DESCRIPTION: ClassVar[str] = "Connects to `nava serve generate`."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "url": (
                    "STRING",
                    {
                        "default": "http://localhost:8124",
                        "tooltip": "of the service; machines other than this one stand in NAVA_SERVERS",
                    },
                ),
                "token_variable": (
                    "STRING",
                    {
                        "default": "NAVA_TOKEN",
                        "tooltip": "environment variable that has the token, NAVA_TOKEN or NAVA_TOKEN_...; "
                        "workflows are shared, so the token is never written here",
                    },
                ),
            }
        }

    def connect(self, url: str, token_variable: str) -> tuple[Service]:
        server = connected(url, token_variable)
        model = server.described()
        return (replace(server, model=str(model["id"]), known=tuple(model.get("adapters", ()))),)


class NavaAdapter:
    """One adapter more, of those that the service was started with."""

    CATEGORY: ClassVar[str] = CATEGORY
    FUNCTION: ClassVar[str] = "add"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("NAVA_SERVER",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("server",)
    DESCRIPTION: ClassVar[str] = "Merges a LoRA adapter of the service into the model; may be chained."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "server": ("NAVA_SERVER",),
                "name": ("STRING", {"default": "", "tooltip": "as in --adapter NAME=FOLDER of the service"}),
                "scale": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}),
            }
        }

    def add(self, server: Service, name: str, scale: float) -> tuple[Service]:
        if name not in server.known:
            known = ", ".join(server.known) or "none; start it with --adapter NAME=FOLDER"
            raise ServiceError(f"adapter {name!r} is not served; served are: {known}")
        return (replace(server, adapters=(*server.adapters, f"{name}={scale:g}")),)


class NavaSample:
    """A prompt, with voices and a first frame, to a clip."""

    CATEGORY: ClassVar[str] = CATEGORY
    FUNCTION: ClassVar[str] = "sample"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("NAVA_CLIP",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("clip",)
    DESCRIPTION: ClassVar[str] = "Makes a clip; speech stands as <S>words<E> in the prompt."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        auto = "0 = what the model was set up with"
        voices = {
            f"voice_{number}": ("AUDIO", {"tooltip": f"speaks the speech span number {number}"})
            for number in range(1, VOICES + 1)
        }
        return {
            "required": {
                "server": ("NAVA_SERVER",),
                "prompt": ("STRING", {"multiline": True, "default": "A woman says: <S>hello<E>."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True}),
                "seconds": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 600.0, "step": 0.1, "tooltip": auto},
                ),
                "width": ("INT", {"default": 0, "min": 0, "max": 16384, "step": 32, "tooltip": auto}),
                "height": ("INT", {"default": 0, "min": 0, "max": 16384, "step": 32, "tooltip": auto}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": auto}),
                "task": (list(TASKS), {"default": AS_GIVEN}),
            },
            "optional": {
                "first_frame": ("IMAGE",),
                "fit": (["crop", "pad", "stretch"], {"tooltip": "first frames of another size"}),
                **voices,
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "guidance": (
                    "STRING",
                    {"default": "", "tooltip": "NAME=SCALE,... such as text_audio=3,align_video=2"},
                ),
            },
        }

    def sample(
        self,
        server: Service,
        prompt: str,
        seed: int,
        seconds: float,
        width: int,
        height: int,
        steps: int,
        task: str,
        first_frame: Any = None,
        fit: str = "crop",
        negative_prompt: str = "",
        guidance: str = "",
        **voices: Any,
    ) -> tuple[NavaClip]:
        fields = {"prompt": prompt, "seed": seed, "data_id": "comfyui", "model": server.model}
        more = {"seconds": seconds, "width": width, "height": height, "steps": steps, "guidance": guidance}
        more |= {"negative_prompt": negative_prompt, "adapters": ",".join(server.adapters)}
        more |= {"task": "" if task == AS_GIVEN else task}
        more |= {"fit": fit if first_frame is not None else ""}
        files = {
            f"reference_{number - 1}": ("audio/wav", wav_of(voice))
            for number in range(1, VOICES + 1)
            if (voice := voices.get(f"voice_{number}")) is not None
        }
        if first_frame is not None:
            files["input_reference"] = ("image/png", png_of(first_frame))
        job = server.create({**fields, **{name: value for name, value in more.items() if value}}, files)
        for warning in job.get("warnings", ()):
            print(f"NAVA: {warning}")
        job = server.wait(job, _progress())
        if job["status"] != "completed":
            error = job.get("error") or {}
            raise ServiceError(f"the clip was not made: {error.get('message') or job['status']}")
        clip = NavaClip(job, server.content(job, "video"), server.content(job, "audio"))
        if clip.video is None and clip.audio is None:
            raise ServiceError(f"{job['id']}: its clip is gone from the service; make it again")
        return (clip,)


class NavaDecode:
    """A clip as pictures and sound for other nodes."""

    CATEGORY: ClassVar[str] = CATEGORY
    FUNCTION: ClassVar[str] = "decode"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("frames", "sound", "fps")
    DESCRIPTION: ClassVar[str] = "Frames, sound (none of a task without it) and frames a second."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"clip": ("NAVA_CLIP",)}}

    def decode(self, clip: NavaClip) -> tuple[Any, Any, float]:
        if clip.video is None:
            raise ServiceError(f"task {clip.job.get('task')} makes no pictures; use NAVA Decode Sound")
        frames, fps = frames_of(clip.video)
        return frames, None if clip.audio is None else sound_of(clip.audio), fps


class NavaDecodeSound:
    """The sound of a clip, of tasks without pictures too."""

    CATEGORY: ClassVar[str] = CATEGORY
    FUNCTION: ClassVar[str] = "decode"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("AUDIO",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("sound",)
    DESCRIPTION: ClassVar[str] = "The sound of a clip."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"clip": ("NAVA_CLIP",)}}

    def decode(self, clip: NavaClip) -> tuple[Any]:
        if clip.audio is None:
            raise ServiceError(f"task {clip.job.get('task')} makes no sound; use NAVA Decode")
        return (sound_of(clip.audio),)


class NavaSave:
    """The clip's own files, with the marks that say what made them."""

    CATEGORY: ClassVar[str] = CATEGORY
    FUNCTION: ClassVar[str] = "save"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    OUTPUT_NODE: ClassVar[bool] = True
    DESCRIPTION: ClassVar[str] = "Writes mp4 and wav as the service made them into ComfyUI's output folder."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": ("NAVA_CLIP",),
                "filename_prefix": ("STRING", {"default": "nava/clip"}),
            }
        }

    def save(self, clip: NavaClip, filename_prefix: str) -> dict[str, Any]:
        import folder_paths  # of ComfyUI

        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        shown: dict[str, list[Mapping[str, str]]] = {}
        for kind, content, suffix in (("images", clip.video, "mp4"), ("audio", clip.audio, "wav")):
            if content is not None:
                file = f"{name}_{counter:05}_.{suffix}"
                _write(Path(folder) / file, content)
                shown[kind] = [{"filename": file, "subfolder": subfolder, "type": "output"}]
        return {"ui": {**shown, **({"animated": (True,)} if clip.video is not None else {})}}


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _progress() -> Any:
    """Shows a job's progress in ComfyUI, and raises there when somebody presses cancel."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:  # outside ComfyUI
        return lambda job: None
    bar = ProgressBar(100)

    def seen(job: Job) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(int(job.get("progress") or 0), 100)

    return seen


NODE_CLASS_MAPPINGS = {
    "NavaConnect": NavaConnect,
    "NavaAdapter": NavaAdapter,
    "NavaSample": NavaSample,
    "NavaDecode": NavaDecode,
    "NavaDecodeSound": NavaDecodeSound,
    "NavaSave": NavaSave,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "NavaConnect": "NAVA Connect",
    "NavaAdapter": "NAVA Adapter",
    "NavaSample": "NAVA Sample",
    "NavaDecode": "NAVA Decode",
    "NavaDecodeSound": "NAVA Decode Sound",
    "NavaSave": "NAVA Save",
}

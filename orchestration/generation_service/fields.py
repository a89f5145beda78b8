"""The fields of a request for a clip, as JSON or as parts of a form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestration.service.limits import Refusal
from pretrain.config import nearest

FIRST_FRAME = "input_reference"
MAX_REFERENCES = 64
_REFERENCE = re.compile(r"reference_(\d{1,2})")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
TextField = Annotated[str, Field(max_length=20_000)]
CountField = Annotated[int, Field(ge=0, le=2**63 - 1)]


class VideoRequest(BaseModel):
    """What may be asked for: OpenAI's fields, those of vLLM-Omni that mean something here, and ours."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    prompt: TextField = Field(min_length=1, description="speech as <S>words<E>")
    model: TextField | None = None
    seconds: Annotated[str | float, Field(description="of the clip")] | None = None
    size: TextField | None = Field(None, description="WIDTHxHEIGHT in pixels, multiples of 32")
    width: CountField | None = None
    height: CountField | None = None
    num_frames: CountField | None = Field(None, description="1 + 4n, in place of seconds")
    fps: float | None = Field(None, description="refused unless it is the model's")
    seed: CountField | None = Field(None, description="a random one where not given; the answer has it")
    steps: CountField | None = Field(None, description="of the sampler")
    num_inference_steps: CountField | None = Field(None, description="the same")
    solver: TextField | None = None
    guidance: dict[str, float] | str | None = Field(
        None, description="NAME: scale, or NAME=SCALE,NAME=SCALE; text_video, text_audio, align_video, ..."
    )
    guidance_scale: float | None = Field(
        None, description="w of classifier-free guidance: text_video = text_audio = w - 1"
    )
    negative_prompt: TextField | None = None
    task: TextField | None = Field(None, description="T2AV, TI2AV, TIA2AV, T2A or T2V")
    adapters: list[str] | str | None = Field(None, description="NAME or NAME=SCALE of those of /v1/models")
    fit: TextField | None = Field(None, description="crop, pad or stretch: first frames of another size")
    data_id: TextField | None = Field(None, description="with the seed it decides about the noise")


SCHEMA: dict[str, Any] = {
    "description": "A prompt and how its clip is made. With files: multipart/form-data, a part for each "
    f"field, the first frame as the part `{FIRST_FRAME}` (png or jpeg), the voice of the i-th speech span as "
    "`reference_i` (wav or flac, from 0).",
    "content": {
        "application/json": {"schema": VideoRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["prompt"],
                "properties": {
                    "prompt": {"type": "string"},
                    FIRST_FRAME: {"type": "string", "format": "binary"},
                    "reference_0": {"type": "string", "format": "binary"},
                },
            }
        },
    },
}


def read_fields(
    content: bytes, uploads: Mapping[str, Path], most_bytes: int
) -> tuple[VideoRequest, dict[str, Path]]:
    """(fields, files by `input_reference` and `reference_N`) of a body: JSON, form parts, or both.

    Raises a one-line Refusal 422, or 413 for texts of more than `most_bytes`.
    """
    files = {
        name: path for name, path in uploads.items() if name == FIRST_FRAME or _REFERENCE.fullmatch(name)
    }
    given: dict[str, Any] = {}
    if content or not uploads:
        given = _json(content)
    left = most_bytes
    for name, path in uploads.items():
        if name in files:
            continue
        if name not in VideoRequest.model_fields:
            known = [*VideoRequest.model_fields, FIRST_FRAME, "reference_0"]
            raise Refusal(422, f"{name[:64]}: unknown field; {nearest(name[:64], known)}")
        if name in given:
            raise Refusal(422, f"{name}: stands in the part request too; send it once")
        left -= path.stat().st_size
        if left < 0:
            raise Refusal(413, f"{name}: more than {most_bytes} bytes of text; make it shorter")
        try:
            given[name] = _value(path.read_bytes().decode())
        except UnicodeDecodeError:
            raise Refusal(422, f"{name}: not UTF-8; send text") from None
    if FIRST_FRAME in given:
        raise Refusal(422, f"{FIRST_FRAME}: send the picture itself, as a part of a multipart body")
    try:
        return VideoRequest.model_validate(given), files
    except ValidationError as error:
        raise Refusal(422, _first(error)) from None


def _json(content: bytes) -> dict[str, Any]:
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise Refusal(422, f"request: not JSON ({what}); send an object") from None
    if not isinstance(given, dict):
        raise Refusal(422, "request: not a JSON object; send fields by their names")
    for name, value in given.items():
        whole = ("num_frames", "width", "height", "seed", "steps", "num_inference_steps")
        if isinstance(value, bool) or (name in whole and isinstance(value, str | float)):
            raise Refusal(422, f"{_plain(name)}: expected another type, got {json.dumps(value)[:40]}")
    return given


def _value(text: str) -> Any:
    """Of a part: JSON where it is an object or a list, else the text."""
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def length_of(request: VideoRequest, fps: float, default: int, most_seconds: float) -> int:
    """Frames, 1 + 4n. Raises Refusal 422."""
    if request.fps is not None and request.fps != fps:
        raise Refusal(422, f"fps: this model makes {fps:g} frames a second; leave it out")
    if request.num_frames is not None and request.seconds is not None:
        raise Refusal(422, "num_frames: stands beside seconds; give one of them")
    frames = default if request.num_frames is None else request.num_frames
    if request.seconds is not None:
        try:
            seconds = float(request.seconds)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= most_seconds:
            raise Refusal(
                422,
                f"seconds: {str(request.seconds)[:40]!r}; more than 0 and at most {most_seconds:g} are made",
            )
        frames = 1 + 4 * max(0, round((seconds * fps - 1) / 4))
    if frames / fps > most_seconds + 4 / fps:
        raise Refusal(422, f"num_frames: {frames} are {frames / fps:g} s; at most {most_seconds:g} are made")
    return frames


def size_of(request: VideoRequest, default: tuple[int, int]) -> tuple[int, int]:
    """(width, height). Raises Refusal 422."""
    if request.size is None:
        width, height = request.width, request.height
        return default[0] if width is None else width, default[1] if height is None else height
    if request.width is not None or request.height is not None:
        raise Refusal(422, "size: stands beside width and height; give one of them")
    if not (found := _SIZE.fullmatch(request.size)):
        raise Refusal(422, f"size: {request.size[:40]!r}; expected WIDTHxHEIGHT such as 1280x704")
    return int(found[1]), int(found[2])


def pairs_of(given: dict[str, float] | list[str] | str | None, field: str, default: float | None) -> dict:
    """{name: number} of NAME=NUMBER,..., of a list of such, or of an object. Raises Refusal 422."""
    if given is None or isinstance(given, dict):
        return given or {}
    entries = given.split(",") if isinstance(given, str) else given
    found: dict[str, float] = {}
    for entry in filter(None, map(str.strip, entries)):
        name, equals, number = entry.partition("=")
        try:
            value = float(number) if equals or default is None else default
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or name in found:
            raise Refusal(422, f"{field}: {entry[:64]!r}; expected NAME=NUMBER, each name once")
        found[name] = value
    return found


def references_of(files: Mapping[str, Path]) -> dict[int, Path]:
    """Voices by the number of their span."""
    numbered = {_REFERENCE.fullmatch(name): path for name, path in files.items() if name != FIRST_FRAME}
    found: dict[int, Path] = {}
    for match, path in numbered.items():
        assert match is not None
        number = int(match[1])
        if number >= MAX_REFERENCES or number in found:
            raise Refusal(422, f"references[{number}]: at most {MAX_REFERENCES}, from reference_0, each once")
        found[number] = path
    return found


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = _plain(str(found["loc"][0])) if found["loc"] else "request"
    if found["type"] == "extra_forbidden":
        return f"{where}: unknown field; {nearest(where, VideoRequest.model_fields)}"
    if found["type"] == "missing":
        return f"{where}: missing; write what is to be seen and heard"
    return f"{where}: {found['msg']}"


def _plain(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "_-." else "_" for sign in name[:64])

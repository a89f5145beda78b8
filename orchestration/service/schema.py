"""Request and response schemas. Strict: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestration.service.limits import Refusal
from pretrain.config import nearest
from pretrain.prompt import parse

PART = "part:"
MAX_TEXT = 20_000
Text = Annotated[str, Field(max_length=MAX_TEXT)]
FileName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4096,
        description=f"a path under an allowed folder, or `{PART}NAME` of this body",
    ),
]
Pixels = Annotated[int, Field(ge=0, le=1 << 20)]
Seconds = Annotated[float, Field(ge=0, le=1e6)]
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ScoreRequest(BaseModel):
    """One clip and its conditions, as in rewards.types.Clip."""

    model_config = STRICT

    rewards: list[Text] | None = Field(
        None, min_length=1, max_length=64, description="names of /v1/rewards; all where not given"
    )
    clip: FileName | None = Field(
        None,
        description="mp4, mov, mkv, webm, wav or flac; the upload called `video` or `audio` where not given",
    )
    audio: FileName | None = Field(None, description="wav or flac instead of the clip's own sound")
    name: Text = ""
    prompt: Text = ""
    spans: list[Text] | None = Field(
        None, max_length=64, description="what is to be said; the prompt's <S>...<E> where not given"
    )
    references: list[FileName | None] = Field([], max_length=64, description="the voice of each span")
    voices: list[Text] = Field([], max_length=64)
    mouth_boxes: list[tuple[Pixels, Pixels, Pixels, Pixels]] = Field([], max_length=64)
    face_boxes: list[tuple[Pixels, Pixels, Pixels, Pixels]] = Field([], max_length=64)
    span_times: list[tuple[Seconds, Seconds]] = Field([], max_length=64)
    first_frame: FileName | None = Field(None, description="png or jpeg")
    reference_sound: FileName | None = Field(None, description="the recording this clip is an answer to")

    def files(self) -> list[tuple[str, str]]:
        """(field, path or part) of everything that is read."""
        single = [(key, getattr(self, key)) for key in ("clip", "audio", "first_frame", "reference_sound")]
        several = [(f"references[{index}]", name) for index, name in enumerate(self.references)]
        return [(field, name) for field, name in single + several if name is not None]


class RewardAnswer(BaseModel):
    """`value` is null exactly when `reason` (clip unscorable) or `error` (reward failed) is set.

    `again`: the error may pass (a process was lost, no room, no answer in time), so ask again.
    """

    value: float | None = None
    parts: dict[str, float | None] = {}
    reason: str = ""
    error: str = ""
    again: bool = False
    text: str = ""
    seconds: float = 0.0


class ScoreAnswer(BaseModel):
    """`total`: of the rubric that is served; null without one, or where a reward of it was not asked for."""

    scores: dict[str, RewardAnswer]
    seconds: float
    total: RewardAnswer | None = None


class RefusalAnswer(BaseModel):
    """`fault`: clip (cannot be scored), request (invalid) or service (try again)."""

    reason: str
    fault: str


class ServedReward(BaseModel):
    """A served reward and how to read its values."""

    name: str
    lower_is_better: bool = False
    judge: bool = False
    picture: bool = True
    about: str = "any"


def read_request(content: bytes, uploads: set[str], served: list[str]) -> ScoreRequest:
    """Raises a one-line Refusal 422: invalid JSON or field, unknown reward, missing or unnamed part."""
    if not content:
        raise Refusal(
            422, "request: missing; send the JSON as the body, or as the part `request` of a multipart body"
        )
    try:
        request = ScoreRequest.model_validate_json(content)
    except ValidationError as error:
        raise Refusal(422, _first(error)) from None
    request = request.model_copy(update=_conventional(request, uploads))
    for name in request.rewards or ():
        if name not in served:
            raise Refusal(422, f"rewards: unknown reward {name[:80]!r}; {nearest(name[:80], served)}")
    if request.clip is None:
        raise Refusal(
            422,
            "clip: missing; give a path, or upload it as the part `video` (mp4, mov, mkv, webm) or `audio`",
        )
    named = {name.removeprefix(PART) for _, name in request.files() if name.startswith(PART)}
    if missing := named - uploads:
        raise Refusal(
            422,
            f"{PART}{min(missing)[:80]}: no such part in this body; {nearest(min(missing)[:80], uploads)}",
        )
    if unused := uploads - named:
        raise Refusal(
            422,
            f"part {min(unused)}: no field names it; say where it belongs, e.g. references: "
            f"[{PART}{min(unused)}]",
        )
    if request.spans is None:
        try:
            spans = [span.text for span in parse(request.prompt).spans]
        except ValueError as error:
            raise Refusal(422, f"prompt: {error}") from None
        request = request.model_copy(update={"spans": spans})
    if len(request.references) > len(request.spans or ()):
        raise Refusal(
            422,
            f"references: {len(request.references)} for {len(request.spans or ())} spans; give at most one "
            "each",
        )
    return request


def _conventional(request: ScoreRequest, uploads: set[str]) -> dict[str, Any]:
    """Uploads called `video` and `audio` need no mention."""
    named = {name for _, name in request.files()}
    free = [part for part in ("video", "audio") if part in uploads and PART + part not in named]
    fields: dict[str, Any] = {}
    for part in free:
        field = "clip" if request.clip is None and "clip" not in fields else "audio"
        if getattr(request, field) is None:
            fields[field] = PART + part
    return fields


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]).lstrip(".")[
            :120
        ]
        or "request"
    )
    if found["type"] == "extra_forbidden":
        return f"{where}: unknown key; {nearest(where.rpartition('.')[2], ScoreRequest.model_fields)}"
    return f"{where}: {found['msg']}"

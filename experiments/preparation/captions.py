"""The step that describes a clip: a caption that is given, a vision-language model, or measured facts.

However it comes about, every span stands in it letter by letter and in order.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import RawClip, Rejection, SpokenSpan
from experiments.preparation.services import captioner
from finetune.rewriter.endpoint import ChatEndpoint, NoAnswer
from finetune.rewriter.form import ENGLISH, messages, rewrite_of
from finetune.rewriter.rewrite import fault
from finetune.rewriter.spans import check_spans
from pretrain.prompt import parse
from pretrain.prompt.marks import SPEECH_END, SPEECH_START

PICTURES = 4
PICTURE_SIDE = 512
TRIES = 3
BACKOFF_S = 0.5
QUIET_DB, NOISY_DB = 30.0, 15.0
LOOK = (
    "The pictures are taken from one video clip, in their order and at equal distances. Describe that clip: "
    "what is seen in the pictures, and the speech below where it is spoken."
)


def described(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """The clip with its text; rejected where its words cannot stand in a text (marks among them)."""
    caption, left_out = given_caption(clip)
    try:
        given = with_speech(caption, clip.spans) if caption else None
        facts = with_speech(measured_facts(clip), clip.spans)
    except ValueError as error:
        return Rejection("caption", "text", None, None, str(error))
    if given is not None:
        return replace(clip, text=given, caption_by="given")
    if left_out:
        clip = clip.labelled(caption_left_out=left_out)
    if (endpoint := captioner()) is not None:
        text, reason = asked(clip, facts, endpoint)
        if text:
            assert [span.text for span in parse(text).spans] == [span.text for span in clip.spans]
            return replace(clip, text=text, caption_by="model")
        return replace(clip, text=facts, caption_by="template").labelled(caption_refused=reason)
    return replace(clip, text=facts, caption_by="template")


def given_caption(clip: RawClip) -> tuple[str, str]:
    """(the caption beside the source, "") where it has no spans or exactly this clip's; ("", why not).

    A caption with other spans tells of a longer clip. What it says of them, who speaks and who answers, is
    not true of this one, and cannot be taken out of its sentences without knowing their language.
    """
    said = [span.text for span in parse(clip.given.caption).spans]
    own = [span.text for span in clip.spans]
    if not said or said == own:
        return clip.given.caption, ""
    return (
        "",
        f"the given caption has {len(said)} spans of speech that are not the {len(own)} of this clip",
    )


def with_speech(caption: str, spans: Sequence[SpokenSpan]) -> str:
    """A caption with spans behind it, where it has none itself. Raises ValueError for words with marks."""
    if not spans or parse(caption).spans:
        return caption
    said = [
        f"{'A voice says' if number == 0 else 'Then'}: {_marked(span.text)}"
        for number, span in enumerate(spans)
    ]
    text = " ".join([caption.strip(), *said]).strip()
    if [span.text for span in parse(text).spans] != [span.text for span in spans]:
        raise ValueError("its words cannot be told from speech marks")
    return text


def measured_facts(clip: RawClip) -> str:
    """What the measures say, in sentences."""
    measures, labels = clip.measures, clip.labels
    faces = int(labels.get("num_faces", 0)) if labels.get("face_visible") else 0
    seen = {0: "The video shows a scene", 1: "The video shows a person facing the camera"}
    motion = measures.get("motion_px", 0.0)
    moves = "moves little" if motion < 0.5 else "moves calmly" if motion < 2.0 else "moves a lot"
    noise = measures.get("snr_db", QUIET_DB)
    sound = "clear" if noise >= QUIET_DB else "noisy" if noise < NOISY_DB else "with some noise behind it"
    first = seen.get(faces, f"The video shows {faces} people facing the camera")
    silent = "" if clip.spans else f" {ENGLISH.silence}"
    return f"{first}. The picture {moves}. The sound is {sound}.{silent}"


def asked(clip: RawClip, facts: str, endpoint: ChatEndpoint) -> tuple[str, str]:
    """(the model's caption, "") or ("", why it was not taken). Raises ConnectionError where no request can
    succeed, and where the server does not answer at all."""
    system, user = messages(facts, ENGLISH)
    content: list[dict[str, Any]] = [
        {"type": "text", "text": f"{LOOK}\n\n{user['content']}"},
        *_pictures(clip),
    ]
    request: Any = [system, {"role": "user", "content": content}]
    reason, reached = "", False
    for attempt in range(TRIES):
        try:
            text = rewrite_of(facts, endpoint.ask(request, attempt))
            reached = True
            reason = fault(facts, text, ENGLISH, 0.0) or check_spans(facts, text)
            if not reason:
                return text, ""
        except NoAnswer as error:
            reason, reached = error.reason, reached or error.reached
            if not error.again:
                break
            time.sleep(max(error.wait_s, BACKOFF_S * 2**attempt) if not error.reached else 0.0)
    if not reached:
        raise ConnectionError(
            f"{endpoint.url}: no answer in {TRIES} tries ({reason}); see to the server and run the "
            "same command again"
        )
    return "", reason


def _marked(words: str) -> str:
    parse(marked := f"{SPEECH_START}{words}{SPEECH_END}")
    return marked


def _pictures(clip: RawClip) -> list[dict[str, Any]]:
    places = np.linspace(0, len(clip.frames) - 1, PICTURES).round().astype(int)
    found = []
    for place in places:
        picture = Image.fromarray(clip.frames[place])
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        found.append({"type": "image_url", "image_url": {"url": address}})
    return found

"""A rewriter without a model: the prompt as it is, inside sentences of the form that hold for any clip."""

from __future__ import annotations

import re

from finetune.rewriter.form import CHINESE, ENGLISH, Form, form_of
from finetune.rewriter.spans import outside

# Not added where the prompt mentions them.
_CAMERA = re.compile(
    r"\b(camera|shot|zoom|pan|pans|panning|close-up|view|angle|tracking)\b|镜头|特写|景别|运镜|推近|拉远",
    re.IGNORECASE,
)
_MUSIC = re.compile(
    r"\b(music|song|sing|sings|singing|band|orchestra|melody|soundtrack)\b|音乐|歌|唱|乐队|旋律",
    re.IGNORECASE,
)


def by_template(prompt: str, form: Form | None = None) -> str:
    """The prompt in `form` (None: of its language), text and spans unchanged. ValueError for wrong marks."""
    form = form or form_of(prompt)
    pieces = outside(prompt)
    if pieces is None:
        raise ValueError("speech marks of the prompt are wrong; `nava prompt check` says where")
    unspoken = " ".join(pieces)
    write = {ENGLISH: _english, CHINESE: _chinese}[form]
    return write(
        prompt.strip(), len(pieces) - 1, bool(_CAMERA.search(unspoken)), bool(_MUSIC.search(unspoken))
    )


def _end(prompt: str, stop: str) -> str:
    return prompt if prompt[-1:] in ".!?…。！？" else prompt + stop


def _english(prompt: str, spans: int, camera: bool, music: bool) -> str:
    speech = (
        "Lips move exactly with the spoken words, and whoever is silent keeps the mouth closed."
        if spans
        else ENGLISH.silence
    )
    seen = (
        "follows what the scene asks for"
        if camera
        else "stays steady at a medium distance, at eye level and without cuts"
    )
    heard = ["each voice near, clean and in time with the lips"] * bool(spans) + [
        "what moves is heard as it moves"
    ]
    return " ".join(
        [
            f"The video shows the following scene. {_end(prompt, '.')}",
            "At first everyone and everything is in place and clearly lit.",
            "Then it all happens in the order described, and every movement follows from the one before. "
            f"{speech}",
            "At the end everything is where its movement has led.",
            f"The camera {seen}, and keeps what matters in sharp focus.",
            f"The sound is clear: {', '.join(heard)}, with the quiet tone of the place behind it"
            + (". " if music else " and no music. ")
            + "Overall picture and sound belong together and feel natural.",
        ]
    )


def _chinese(prompt: str, spans: int, camera: bool, music: bool) -> str:
    speech = "说话时口型与台词完全同步，不说话的人全程闭口。" if spans else CHINESE.silence
    seen = "按照画面描述的方式拍摄" if camera else "采用稳定的平视中景构图，全程不切镜"
    voices = "人声清晰靠近，与口型一致，" if spans else ""
    heard = f"{voices}动作声随动作自然响起，背景是场景本身安静的环境声{'。' if music else '，没有背景音乐。'}"
    return "".join(
        [
            f"视频展现了以下场景。{_end(prompt, '。')}",
            "视频开始时，人物与物体都已就位，光线清楚自然。",
            f"随后，一切按照描述的顺序连续发生，每个动作都由前一个动作自然引出，快慢符合真实的物理规律。{speech}",
            "视频结束时，一切处于动作完成后的状态。",
            f"镜头{seen}，清楚捕捉关键的动作细节。",
            f"声音设计服务于画面，{heard}",
            "整体画面与声音紧密结合，真实自然，富有现场感。",
        ]
    )

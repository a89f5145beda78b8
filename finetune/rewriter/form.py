"""What a rewritten prompt looks like, what a language model is told to get one, and how near a text comes to
it.

NAVA is trained on dense captions of one paragraph: scene and subjects, then what happens along the time of
the clip, speech where it is spoken, then camera, sound and the whole (the release's README and rewriting
instructions, facts only; published weights know Chinese, the mini English). A part is known by the phrase it
starts with, so that a form can be measured without a model.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from dataclasses import dataclass

from finetune.rewriter.spans import map_outside, map_spoken, outside, protect

TEMPLATE = """You turn a short prompt into the prompt that an audio-video generation model wants. Write \
{language}, one paragraph, \
{low} to {high} {unit}, nothing else: no title, no list, no explanation, no quotes around it.

Start these parts with exactly these words, in this order, a sentence or more each:
{parts}

Keep whatever the prompt says of subjects, actions, speed, mood, place, camera and sound, and contradict \
none of it. Add only what \
can be seen and heard. Write what moves, from the first moment to the last, not a still picture.
[SPEECH 1], [SPEECH 2] and so on stand for spoken words. Write each of them exactly once, in the given \
order, where it is spoken, \
with who speaks and in what voice before it. Never write the spoken words yourself, and translate nothing \
of them.
Where the prompt has no [SPEECH], say: {silence}
No background music unless the prompt asks for it."""


Message = dict[str, str]  # role and content, as OpenAI's interface and chat templates take it


@dataclass(frozen=True)
class Part:
    """One part of the form: the words it starts with, and what it says."""

    name: str
    cue: str
    says: str


@dataclass(frozen=True)
class Form:
    """The parts in order, the sentence for clips without speech, and the wanted length in words (Han
    characters count as one each)."""

    language: str
    unit: str
    parts: tuple[Part, ...]
    silence: str
    low: int
    high: int

    @property
    def instruction(self) -> str:
        """TEMPLATE filled in: the system message."""
        parts = "\n".join(f'- "{part.cue}": {part.says}' for part in self.parts)
        return TEMPLATE.format(
            language=self.language,
            unit=self.unit,
            parts=parts,
            silence=self.silence,
            low=self.low,
            high=self.high,
        )


ENGLISH = Form(
    "English",
    "words",
    (
        Part(
            "scene",
            "The video shows",
            "the kind of picture, the place, the light, and who or what is in it, where and how they look",
        ),
        Part("start", "At first", "the state at the first moment"),
        Part("course", "Then", "what moves and how, step by step, with whatever is said"),
        Part("end", "At the end", "the state at the last moment"),
        Part(
            "camera",
            "The camera",
            "distance, angle, movement; a steady one without cuts unless the prompt says otherwise",
        ),
        Part(
            "sound", "The sound", "voices, noises of what moves, the room; each from something in the scene"
        ),
        Part("whole", "Overall", "the mood in one sentence"),
    ),
    "Nobody speaks and there is no narration.",
    60,
    220,
)
CHINESE = Form(
    "Chinese",
    "characters",
    (
        Part("scene", "视频展现了", "画面风格、场景、光线, 主体的位置与外观"),
        Part("start", "视频开始时", "第一刻的状态"),
        Part("course", "随后", "动作如何一步步发生, 台词在何时说出"),
        Part("end", "视频结束时", "最后一刻的状态"),
        Part("camera", "镜头", "景别、机位、运动; 没有要求时稳定且不切镜"),
        Part("sound", "声音", "人声、动作声与环境声, 均来自场景本身"),
        Part("whole", "整体", "一句话概括氛围"),
    ),
    "画面中没有人物对白，也没有任何旁白。",
    120,
    500,
)
FORMS = {"en": ENGLISH, "zh": CHINESE}
TEMPLATE_ID = hashlib.sha256((TEMPLATE + repr(FORMS)).encode()).hexdigest()[:16]

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*")
_MIN_WORDS = 3  # of a part, besides its cue: the cue alone says nothing
_MAX_CUES = 30  # of one part that are looked at
_THINKING = re.compile(r"\A.*</think\s*>", re.DOTALL | re.IGNORECASE)
_LINE_END = re.compile("\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def form_of(prompt: str) -> Form:
    """Chinese where what is not spoken has a Han character, else English."""
    return CHINESE if re.search(f"[{_HAN}]", "".join(outside(prompt) or [prompt])) else ENGLISH


def messages(prompt: str, form: Form | None = None) -> list[Message]:
    """The chat that asks for a rewrite: the instruction, and the prompt with its spans taken out and named
    below it.

    `form` None is the prompt's own language. Raises ValueError for a prompt whose marks are wrong.
    """
    protected = protect(prompt)
    form = form or form_of(prompt)
    named = [
        (protected.placeholder(number), json.dumps(words, ensure_ascii=False))
        for number, words in enumerate(protected.words, 1)
    ]
    spoken = [f"{name} is spoken: {words}" for name, words in named]
    instruction = form.instruction.replace("[SPEECH", f"[{protected.name}")
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": "\n".join([protected.text, *spoken])},
    ]


def rewrite_of(prompt: str, answer: str) -> str:
    """The rewrite in a model's answer: thoughts, fence and quotes around it gone, one paragraph, spans put
    back; unchecked."""
    text = _THINKING.sub("", answer).strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3].strip()
    if len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("“", "”"), ("「", "」")}:
        text = text[1:-1].strip()
    return map_outside(protect(prompt).restore(text), _one_line)


def _one_line(piece: str) -> str:
    first, *lines = _LINE_END.split(piece)
    kept = [line.strip() for line in lines[:-1] if line.strip()]
    return " ".join([first.rstrip(), *kept, lines[-1].lstrip()]) if lines else piece


def sections(text: str, form: Form | None = None) -> dict[str, str]:
    """Name -> text of the parts that are there in order, each with a few words of its own: the longest such
    choice.

    A part starts with its cue, at the start of a sentence or clause and not inside speech. `form` None is the
    one that fits best.
    """
    return _longest(text, form) if form else max((_longest(text, each) for each in FORMS.values()), key=len)


def structure(text: str, form: Form | None = None) -> float:
    """Share of the form in `text`, 0..1: its parts present in order, and speech or, without any, the sentence
    that says so."""
    return max(_structure(text, each) for each in ([form] if form else FORMS.values()))


def length(text: str, form: Form | None = None) -> float:
    """1 for a length the form wants, in words that are not spoken, falling to 0 at none and at twice too
    many.

    A sentence said again does not count again, so that repetition is no length. `form` None is the one that
    fits best.
    """
    form = form or max(FORMS.values(), key=lambda each: _structure(text, each))
    count = num_words(text, repeated=False)
    return min(1.0, count / form.low) if count < form.high else max(0.0, 2.0 - count / form.high)


def num_words(text: str, repeated: bool = True) -> int:
    """Words that are not spoken, Han characters counted one by one; without `repeated`, of each different
    sentence once."""
    sentences = re.split(r"[.!?…。！？\n]+", "\n".join(outside(text) or [text]))
    return sum(
        len(_WORD.findall(sentence))
        for sentence in (sentences if repeated else {sentence.strip() for sentence in sentences})
    )


def _structure(text: str, form: Form) -> float:
    spans, silent = len(outside(text) or [text]) - 1, form.silence.rstrip(".。") in text
    return (len(_longest(text, form)) + (silent != (spans > 0))) / (len(form.parts) + 1)


def _longest(text: str, form: Form) -> dict[str, str]:
    """Longest chain of cues in the form's order, with _MIN_WORDS words behind each before the next."""
    unspoken = map_spoken(text, lambda span: "\x01" * len(span))
    cues = []  # (start, end of the cue, part)
    for number, part in enumerate(form.parts):
        starts = re.finditer(rf"(?:\A|[.!?…。！？；;，,：:\x01\n])\s{{0,3}}({re.escape(part.cue)})", unspoken)
        cues += [
            (found.start(1), found.end(1), number) for found, _ in zip(starts, range(_MAX_CUES), strict=False)
        ]
    cues.sort()
    within = {at for start, end, _ in cues for at in range(start, end)}
    words = [word.start() for word in _WORD.finditer(unspoken) if word.start() not in within]
    chains: list[tuple[int, ...]] = []  # the longest that ends at each cue, as positions in `cues`
    for at, (start, _, number) in enumerate(cues):
        before = [chain for chain in chains if _follows(cues[chain[-1]], start, number, words)]
        chains.append((*max(before, key=len, default=()), at))
    whole = [chain for chain in chains if _follows(cues[chain[-1]], len(text), len(form.parts), words)]
    chain = max(whole, key=len, default=())
    ends = [*(cues[at][0] for at in chain[1:]), len(text)]
    return {
        form.parts[cues[at][2]].name: text[cues[at][1] : end].strip()
        for at, end in zip(chain, ends, strict=False)
    }


def _follows(cue: tuple[int, int, int], start: int, number: int, words: list[int]) -> bool:
    return cue[2] < number and bisect_left(words, start) - bisect_left(words, cue[1]) >= _MIN_WORDS

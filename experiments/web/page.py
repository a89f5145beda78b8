"""The page's components and where they stand; what they do is in `events`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports] (an extra)

from experiments.web.form import GUIDANCE, MOST_SEEDS, MOST_VOICES
from experiments.web.views import HISTORY_COLUMNS

FITS = [("cut to the size", "crop"), ("with bars", "pad"), ("stretched", "stretch"), ("must fit", "exact")]
TASKS = [
    ("pictures and sound", ""),
    ("sound alone", "T2A"),
    ("pictures alone", "T2V"),
]
BOXES_INFO = (
    "Where the sync score looks: x0,y0,x1,y1 in pixels for each face, `;` between faces. Leave it empty for "
    "rewards that find faces themselves."
)


@dataclass(frozen=True)
class Opening:
    """What the page begins with: sides as (label, value), and the defaults and limits of the first one."""

    choices: Sequence[tuple[str, str]] = ()
    service: str | None = None
    seconds: float = 1.0
    most_seconds: float = 60.0
    size: str = ""
    steps: int = 14
    most_steps: int = 200
    guidance: Sequence[float] = (0.0,) * len(GUIDANCE)

    @property
    def first(self) -> str:
        return self.choices[0][1] if self.choices else ""

    def choices_of(self, side: str) -> list[tuple[str, str]]:
        """B may be nothing; A only where there is no model."""
        nothing = [] if side == "A" and self.choices else [("nothing", "")]
        return [*nothing, *self.choices]


@dataclass(frozen=True)
class FormParts:
    """Components of the form; guidance in the order of `form.GUIDANCE`."""

    prompt: gr.Textbox
    check: gr.HTML
    voices: Sequence[gr.Audio]
    frame: gr.Image
    fit: gr.Dropdown
    negative: gr.Textbox
    sides: Sequence[gr.Dropdown]
    scales: Sequence[gr.Slider]
    seeds: gr.Textbox
    seconds: gr.Slider
    size: gr.Textbox
    steps: gr.Slider
    task: gr.Dropdown
    guidance: Sequence[gr.Slider]
    boxes: gr.Textbox
    make: gr.Button
    cancel: gr.Button
    message: gr.HTML

    @property
    def typed(self) -> set[Any]:
        """All that can be checked while it is typed."""
        some = (
            self.prompt,
            self.fit,
            self.negative,
            self.seeds,
            self.seconds,
            self.size,
            self.steps,
            self.task,
        )
        return {*some, *self.sides, *self.scales, *self.guidance, self.boxes}

    @property
    def all(self) -> set[Any]:
        """With files."""
        return {*self.typed, *self.voices, self.frame}

    @property
    def settings(self) -> list[Any]:
        """What a model has defaults of."""
        return [self.seconds, self.size, self.steps, *self.guidance]


@dataclass(frozen=True)
class SlotParts:
    """A seed's clips: players and facts of A and B."""

    group: gr.Column
    title: gr.HTML
    columns: Sequence[gr.Column]
    clips: Sequence[gr.HTML]
    facts: Sequence[gr.HTML]

    @property
    def outputs(self) -> list[Any]:
        sides = zip(self.columns, self.clips, self.facts, strict=True)
        return [self.group, self.title, *(part for side in sides for part in side)]


@dataclass(frozen=True)
class VoteParts:
    box: gr.Column
    name: gr.Textbox
    send: gr.Button
    message: gr.HTML


@dataclass(frozen=True)
class HistoryParts:
    table: gr.Dataframe
    refresh: gr.Button
    older: gr.Button
    message: gr.HTML
    box: gr.Column
    clip: gr.HTML
    facts: gr.HTML
    reuse: gr.Button
    cancel: gr.Button
    delete: gr.Button
    really: gr.Button


def form_parts(opening: Opening) -> FormParts:
    with gr.Row():
        with gr.Column(scale=6, min_width=300):
            prompt, check, negative = _texts()
            voices, frame, fit = _files()
            guidance, boxes = _guidance(opening)
        with gr.Column(scale=5, min_width=300):
            sides, scales = _sides(opening)
            seeds, seconds, size, steps, task = _numbers(opening)
            with gr.Row():
                make = gr.Button("Make clips", variant="primary", elem_id="nava-make", min_width=120)
                cancel = gr.Button(
                    "Cancel", variant="stop", interactive=False, elem_id="nava-cancel", min_width=100
                )
            message = gr.HTML(elem_id="nava-message")
    return FormParts(
        prompt=prompt,
        check=check,
        voices=voices,
        frame=frame,
        fit=fit,
        negative=negative,
        sides=sides,
        scales=scales,
        seeds=seeds,
        seconds=seconds,
        size=size,
        steps=steps,
        task=task,
        guidance=guidance,
        boxes=boxes,
        make=make,
        cancel=cancel,
        message=message,
    )


def _texts() -> tuple[gr.Textbox, gr.HTML, gr.Textbox]:
    prompt = gr.Textbox(
        label="Prompt",
        info="What is seen and heard. Words to be spoken stand between `<S>` and `<E>`.",
        placeholder="A woman stands in a kitchen and says: <S>seven<E>.",
        lines=4,
        max_lines=14,
        elem_id="nava-prompt",
    )
    check = gr.HTML(elem_id="nava-check")
    negative = gr.Textbox(
        label="Negative prompt",
        info="What guidance leads away from; no speech in it.",
        lines=1,
        max_lines=4,
        elem_id="nava-negative",
    )
    return prompt, check, negative


def _files() -> tuple[list[gr.Audio], gr.Image, gr.Dropdown]:
    with gr.Accordion("Voices, one for each span in order", open=False, elem_id="nava-voices"):
        voices = [
            gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label=f"Voice of span {number}",
                visible=number == 1,
                elem_id=f"nava-voice-{number}",
            )
            for number in range(1, MOST_VOICES + 1)
        ]
    with gr.Accordion("First frame", open=False, elem_id="nava-frame"):
        frame = gr.Image(
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            format="png",
            height=220,
            label="The clip begins with this picture",
            buttons=[],
        )
        fit = gr.Dropdown(FITS, value="crop", label="A picture of another size is", elem_id="nava-fit")
    return voices, frame, fit


def _sides(opening: Opening) -> tuple[list[gr.Dropdown], list[gr.Slider]]:
    dropdowns, scales = [], []
    told = ("What makes the clips.", "Beside A, from the same noise.")
    with gr.Row():
        for side, info in zip("AB", told, strict=True):
            with gr.Column(min_width=140):
                dropdowns.append(
                    gr.Dropdown(
                        opening.choices_of(side),
                        value=opening.first if side == "A" else "",
                        label=f"Model {side}",
                        info=info,
                        elem_id=f"nava-model-{side}",
                    )
                )
                scales.append(
                    gr.Slider(
                        -2.0,
                        2.0,
                        1.0,
                        step=0.05,
                        label="Adapter's scale",
                        visible=False,
                        elem_id=f"nava-scale-{side}",
                    )
                )
    return dropdowns, scales


def _numbers(opening: Opening) -> tuple[gr.Textbox, gr.Slider, gr.Textbox, gr.Slider, gr.Dropdown]:
    with gr.Row():
        seeds = gr.Textbox(
            label="Seeds",
            info=f"1 2 3, or 1-4: a clip each, {MOST_SEEDS} at most; empty draws one.",
            elem_id="nava-seeds",
            min_width=140,
        )
        size = gr.Textbox(
            value=opening.size,
            label="Size",
            info="WIDTHxHEIGHT, multiples of 32.",
            elem_id="nava-size",
            min_width=140,
        )
    seconds = gr.Slider(
        0.05,
        opening.most_seconds,
        opening.seconds,
        step=0.01,
        label="Seconds",
        info="The nearest length that can be made is taken.",
        elem_id="nava-seconds",
    )
    steps = gr.Slider(
        1,
        opening.most_steps,
        opening.steps,
        step=1,
        label="Steps",
        info="More are slower and finer, up to a point.",
        elem_id="nava-steps",
    )
    task = gr.Dropdown(TASKS, value="", label="What is made", elem_id="nava-task")
    return seeds, seconds, size, steps, task


def _guidance(opening: Opening) -> tuple[list[gr.Slider], gr.Textbox]:
    with gr.Accordion("Guidance", open=False, elem_id="nava-guidance"):
        sliders = [
            gr.Slider(
                -2.0, 12.0, scale, step=0.1, label=name, info=f"{info} 0 is off.", elem_id=f"nava-{name}"
            )
            for (name, info), scale in zip(GUIDANCE.items(), opening.guidance, strict=True)
        ]
    with gr.Accordion("For the scores", open=False):
        boxes = gr.Textbox(label="Mouth boxes", info=BOXES_INFO, elem_id="nava-boxes")
    return sliders, boxes


def slot_parts() -> list[SlotParts]:
    return [_slot(number) for number in range(MOST_SEEDS)]


def _slot(number: int) -> SlotParts:
    columns, clips, facts = [], [], []
    with gr.Column(visible=False, elem_classes="nava-slot", elem_id=f"nava-slot-{number}") as group:
        title = gr.HTML(elem_classes="nava-clip")
        with gr.Row():
            for side in "AB":
                with gr.Column(visible=side == "A", min_width=260, elem_classes=f"nava-{side}") as column:
                    clips.append(gr.HTML(elem_classes="nava-clip"))
                    facts.append(gr.HTML(elem_classes="nava-facts"))
                columns.append(column)
    return SlotParts(group, title, columns, clips, facts)


def vote_parts() -> VoteParts:
    with gr.Column(visible=False, elem_id="nava-vote") as box:
        with gr.Row():
            name = gr.Textbox(
                value="vote",
                label="Name of a vote",
                info="Pairs of one name gather in one vote; the finished ones above are added.",
                elem_id="nava-vote-name",
                scale=3,
                min_width=200,
            )
            send = gr.Button("Send these pairs to a vote", elem_id="nava-vote-send", scale=1, min_width=200)
        message = gr.HTML(elem_id="nava-vote-message")
    return VoteParts(box, name, send, message)


def history_parts() -> HistoryParts:
    gr.Markdown("All jobs of this page's token, as the services list them. Choose a row to see its clip.")
    with gr.Row():
        refresh = gr.Button("Refresh", size="sm", min_width=100, elem_id="nava-refresh")
        older = gr.Button("Older", size="sm", min_width=100, interactive=False, elem_id="nava-older")
    message = gr.HTML()
    table = gr.Dataframe(
        headers=HISTORY_COLUMNS,
        type="array",
        interactive=False,
        wrap=True,
        max_height=420,
        buttons=[],
        column_widths=["165px", "110px", "150px", "120px", "400px"],
        elem_id="nava-history",
    )
    with gr.Column(visible=False, elem_id="nava-chosen") as box:
        clip, facts = gr.HTML(elem_classes="nava-clip"), gr.HTML(elem_classes="nava-facts")
        with gr.Row():
            reuse = gr.Button("Take over into the form", size="sm", min_width=140, elem_id="nava-reuse")
            cancel = gr.Button("Cancel the job", size="sm", min_width=120)
            delete = gr.Button(
                "Forget the job", size="sm", variant="stop", min_width=120, elem_id="nava-delete"
            )
            really = gr.Button(
                "Yes, forget it and its clip, here and at the service",
                size="sm",
                variant="stop",
                visible=False,
                elem_id="nava-really",
            )
    return HistoryParts(table, refresh, older, message, box, clip, facts, reuse, cancel, delete, really)

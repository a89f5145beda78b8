"""What the page's components do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports] (an extra)

from experiments.generation_client import Job
from experiments.web.desk import PageDesk, SeenClip
from experiments.web.form import (
    GUIDANCE,
    MOST_SEEDS,
    MOST_VOICES,
    PageForm,
    check_sides,
    mouth_boxes_of,
    seeds_of,
)
from experiments.web.page import FormParts, HistoryParts, Opening, SlotParts, VoteParts
from experiments.web.prompts import prompt_html, read_typed
from experiments.web.services import ModelSide
from experiments.web.views import (
    clip_html,
    facts_html,
    history_row,
    message_html,
    progress_html,
    title_html,
    vote_html,
)
from pretrain.config import one_line

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
PLAIN_EVENT: dict[str, Any] = {
    "show_progress": "minimal",
    "api_visibility": "private",
    "concurrency_limit": None,
}
FilledIn = Mapping[Any, Any]


@dataclass(frozen=True)
class PageEvents:
    """Handlers of one page over its desk."""

    desk: PageDesk
    form: FormParts
    slots: Sequence[SlotParts]
    vote: VoteParts
    history: HistoryParts
    opening: Opening

    def form_of(self, values: FilledIn, with_files: bool = True) -> PageForm:
        """What was filled in. Raises ValueError in one line."""
        form = self.form
        prompt = str(values[form.prompt] or "")
        typed = read_typed(prompt)
        if typed.problem or not prompt.strip():
            raise ValueError(f"prompt: {typed.problem or 'write what is to be seen and heard'}")
        voices = [values.get(voice) for voice in form.voices] if with_files else []
        given = [path and Path(path) for path in voices[: len(typed.spans)]]
        frame = values.get(form.frame) if with_files else None
        return PageForm(
            prompt=prompt,
            negative_prompt=str(values[form.negative] or ""),
            seeds=seeds_of(str(values[form.seeds] or "")),
            seconds=values[form.seconds],
            size=str(values[form.size] or ""),
            steps=values[form.steps] and int(values[form.steps]),
            guidance=dict(zip(GUIDANCE, (float(values[one] or 0) for one in form.guidance), strict=True)),
            task=str(values[form.task] or ""),
            fit=str(values[form.fit] or "") if frame else "",
            references=tuple(given) if any(given) else (),
            first_frame=frame and Path(frame),
            mouth_boxes=mouth_boxes_of(str(values[form.boxes] or "")),
        )

    def sides_of(self, values: FilledIn) -> list[ModelSide]:
        """A, and B where one is chosen. Raises ValueError or ConnectionError in one line."""
        found = []
        for chosen, scale in zip(self.form.sides, self.form.scales, strict=True):
            if values[chosen]:
                service, adapter = json.loads(values[chosen])
                found.append(self.desk.services.side(service, adapter, float(values[scale])))
        if not values[self.form.sides[0]]:
            raise ValueError("model A: none; start a service (`nava serve generate`) and load the page again")
        return found

    def typed(self, values: FilledIn) -> list[Any]:
        """The prompt with its spans, and what the service would refuse of the rest."""
        text = str(values[self.form.prompt] or "")
        try:
            sides = self.sides_of(values)
            limit = min(self.desk.services.offer(side.service).limits.prompt_chars for side in sides)
        except (ValueError, OSError):
            sides, limit = [], 0
        prompt = read_typed(text, limit)
        told = ""
        if sides and text.strip() and not prompt.problem:
            try:
                check_sides(self.form_of(values, with_files=False), sides, self.desk.services)
            except (ValueError, OSError) as error:
                told = f"would be refused: {one_line(error, 300)}"
        count = len(prompt.spans)
        shown = [gr.update(visible=number < max(1, count)) for number in range(MOST_VOICES)]
        if count > MOST_VOICES:
            told = told or f"voices can be given for the first {MOST_VOICES} of {count} spans"
        return [prompt_html(prompt), message_html(told, bad=bool(told)), *shown]

    def make(self, values: FilledIn) -> list[Any]:
        """[key of the comparison, message, timer, cancel button]"""
        try:
            made = self.desk.make(self.form_of(values), self.sides_of(values))
        except (ValueError, OSError) as error:
            return [gr.skip(), message_html(one_line(error, 400), bad=True), gr.skip(), gr.skip()]
        key = self.desk.store.keep_comparison(made)
        return [key, "", gr.Timer(active=True), gr.update(interactive=True)]

    def look(self, key: str, shown: list[Any]) -> list[Any]:
        """[progress, what is shown, timer, cancel button, vote, slots...]; the unchanged is skipped."""
        comparison = self.desk.store.comparison(key)
        pairs = self.desk.look(comparison)
        clips = [clip for pair in pairs for clip in pair]
        wanted = [value for number in range(MOST_SEEDS) for value in _slot_values(pairs, number)]
        parts = [kind for slot in self.slots for kind in slot.outputs]
        updates = [
            gr.skip() if number < len(shown) and shown[number] == value else _update(part, value)
            for number, (part, value) in enumerate(zip(parts, wanted, strict=True))
        ]
        ready = any(len(pair) == 2 and all("video" in clip.files for clip in pair) for pair in pairs)
        going = not all(clip.settled for clip in clips)
        running = not all(clip.ended for clip in clips)
        progress = progress_html(pairs, comparison.get("warnings", ()))
        head = [progress, wanted, gr.Timer(active=going), gr.update(interactive=running)]
        return [*head, gr.update(visible=ready), *updates]

    def cancel(self, key: str) -> str:
        self.desk.cancel(self.desk.store.comparison(key))
        return message_html("cancelled: what was not finished; finished clips stay")

    def send(self, key: str, name: str) -> str:
        try:
            sets = self.desk.vote(name, self.desk.look(self.desk.store.comparison(key)))
        except (ValueError, OSError) as error:
            return message_html(one_line(error, 400), bad=True)
        return vote_html(sets)

    def load(self) -> list[Any]:
        """[message, model A, model B] of a page that was just opened: models may have come or gone."""
        opening, wrong = opening_of(self.desk)
        same = list(opening.choices) == list(self.opening.choices)
        sides = [
            gr.skip()
            if same
            else gr.update(choices=opening.choices_of(side), value=opening.first if side == "A" else "")
            for side in "AB"
        ]
        return [message_html("; ".join(wrong), bad=True), *sides]

    def defaults(self, chosen: str, known: str | None) -> list[Any]:
        """[the service whose defaults are in the form, seconds, size, steps, guidance...]"""
        service = json.loads(chosen)[0] if chosen else None
        if service is None or service == known:
            return [gr.skip()] * (1 + len(self.form.settings))
        opening = defaults_of(self.desk, service, ())
        return [
            opening.service,
            gr.update(maximum=opening.most_seconds, value=opening.seconds),
            opening.size,
            gr.update(maximum=opening.most_steps, value=opening.steps),
            *opening.guidance,
        ]

    def scale(self, chosen: str) -> Any:
        """A scale is for an adapter."""
        return gr.update(visible=bool(chosen and json.loads(chosen)[1]))

    def listed(self, after: Mapping[str, str]) -> list[Any]:
        """[jobs, where older ones begin, table, older button, message, box of the chosen one]"""
        jobs, further, wrong = self.desk.history(after)
        rows = [history_row(service, job) for service, job in jobs]
        message = message_html("; ".join(wrong), bad=bool(wrong))
        if not jobs and not wrong:
            message = message_html("no jobs yet")
        return [jobs, further, rows, gr.update(interactive=bool(further)), message, gr.update(visible=False)]

    def chosen(self, jobs: Sequence[tuple[str, Job]], event: gr.SelectData) -> list[Any]:
        """[the job, timer, box, clip, facts, message, cancel button, really button]"""
        number = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        service, job = jobs[number]
        clip = self.desk.one(service, job)
        return [[service, job["id"], clip.ended], gr.Timer(active=not clip.settled), *self._chosen(clip)]

    def _chosen(self, clip: SeenClip) -> list[Any]:
        waits = gr.update(interactive=not clip.ended)
        hidden = gr.update(visible=False)
        return [gr.update(visible=True), clip_html(clip, ""), facts_html(clip), "", waits, hidden]

    def follow(self, chosen: Sequence[Any]) -> list[Any]:
        """[the job, clip, facts, timer] of the chosen job as it is now; the unchanged is skipped."""
        try:
            service, id, ended = chosen
            clip = self.desk.one(service, self.desk.services.servers[service].poll(id))
        except (ValueError, OSError, KeyError):
            return [gr.skip(), gr.skip(), gr.skip(), gr.Timer(active=False)]
        player = clip_html(clip, "") if clip.ended and not ended else gr.skip()
        return [[service, id, clip.ended], player, facts_html(clip), gr.Timer(active=not clip.settled)]

    def end(self, chosen: Sequence[Any]) -> list[Any]:
        """Cancel the chosen job: as `chosen` without job and timer."""
        return self._on_job(
            chosen, lambda service, job: self.desk.services.servers[service].cancel(job["id"])
        )

    def _on_job(self, chosen: Sequence[Any], act: Callable[[str, Job], Any]) -> list[Any]:
        try:
            service, id, _ = chosen
            act(service, {"id": id})
            job = self.desk.services.servers[service].poll(id)
            return self._chosen(self.desk.one(service, job))
        except (ValueError, OSError, KeyError) as error:
            return [*[gr.skip()] * 3, message_html(one_line(error, 300), bad=True), gr.skip(), gr.skip()]

    def forget(self, chosen: Sequence[Any]) -> list[Any]:
        """History's outputs, without the job."""
        try:
            self.desk.forget(*chosen[:2])
        except (ValueError, OSError, KeyError) as error:
            return [*[gr.skip()] * 4, message_html(one_line(error, 300), bad=True), gr.skip()]
        return self.listed({})

    def reuse(self, jobs: Sequence[tuple[str, Job]], chosen: Sequence[Any]) -> list[Any]:
        """[tabs, prompt, negative, seeds, task, seconds, size, steps, guidance...] of a job."""
        job = next(job for service, job in jobs if [service, job["id"]] == chosen[:2])
        scales = [job["guidance"].get(name, gr.skip()) for name in GUIDANCE]
        task = job["task"] if job["task"] in ("T2A", "T2V") else ""
        texts = [job["prompt"], job["negative_prompt"] or "", str(job["seed"]), task]
        size = job["size"] or gr.skip()
        return [gr.Tabs(selected="make"), *texts, float(job["seconds"]), size, job["steps"], *scales]


def opening_of(desk: PageDesk) -> tuple[Opening, list[str]]:
    """What the page begins with, and a line for each service that does not answer."""
    sides, wrong = desk.services.sides()
    choices = [(side.label, json.dumps([side.service, side.adapter])) for side in sides]
    return (defaults_of(desk, sides[0].service, choices) if sides else Opening()), wrong


def defaults_of(desk: PageDesk, service: str, choices: Sequence[tuple[str, str]]) -> Opening:
    """Of a service, as it says; those of no service where it does not answer."""
    try:
        offer = desk.services.offer(service)
    except (ValueError, OSError):
        return Opening(choices)
    config, limits = offer.config, offer.limits
    return Opening(
        choices,
        service,
        seconds=round(config.num_frames / config.fps, 2),
        most_seconds=limits.seconds_of_clip,
        size=f"{config.width}x{config.height}",
        steps=config.sampler.steps,
        most_steps=limits.steps,
        guidance=[getattr(config.sampler.guidance, name) for name in GUIDANCE],
    )


def _slot_values(pairs: Sequence[Sequence[SeenClip]], number: int) -> list[Any]:
    """What a slot shows, in the order of `SlotParts.outputs`: whether it can be seen, and HTML."""
    pair = pairs[number] if number < len(pairs) else ()
    values: list[Any] = [bool(pair), title_html(pair)]
    for side in range(2):
        clip = pair[side] if side < len(pair) else None
        name = "AB"[side] if len(pair) > 1 else ""
        values += [clip is not None, clip_html(clip, name) if clip else "", facts_html(clip) if clip else ""]
    return values


def _update(part: Any, value: Any) -> Any:
    return gr.update(visible=value) if isinstance(value, bool) else value


def wire(page: PageEvents, tabs: gr.Tabs, progress: gr.HTML) -> None:
    """Connects the components; called inside of the page."""
    key = gr.BrowserState("", storage_key="nava-comparison", secret="nava-comparison")
    shown = gr.State([])
    timer = gr.Timer(1.0, active=False)
    _wire_form(page, key, timer)
    form, vote = page.form, page.vote
    slots = [part for slot in page.slots for part in slot.outputs]
    looked = [progress, shown, timer, form.cancel, vote.box, *slots]
    timer.tick(page.look, [key, shown], looked, **QUIET)
    gr.on(None, page.look, [key, shown], looked, **QUIET)
    form.cancel.click(page.cancel, key, form.message, **PLAIN_EVENT)
    vote.send.click(page.send, [key, vote.name], vote.message, **PLAIN_EVENT)
    _wire_history(page, tabs)


def _wire_form(page: PageEvents, key: gr.BrowserState, timer: gr.Timer) -> None:
    form, known = page.form, gr.State(page.opening.service)
    checked = [form.check, form.message, *form.voices]
    gr.on(None, page.load, None, [form.message, *form.sides], **QUIET).then(
        page.defaults, [form.sides[0], known], [known, *form.settings], **QUIET
    )
    typed = [form.prompt, form.negative, form.seeds, form.size, form.boxes]
    # not `input`, which is of keys alone: texts are pasted and dictated too
    events = [
        *(one.change for one in typed),
        *(one.release for one in (form.seconds, form.steps, *form.guidance)),
    ]
    gr.on([*events, form.task.input], page.typed, form.typed, checked, trigger_mode="always_last", **QUIET)
    for side, scale in zip(form.sides, form.scales, strict=True):
        side.input(page.scale, side, scale, **QUIET).then(page.typed, form.typed, checked, **QUIET)
    form.sides[0].input(page.defaults, [form.sides[0], known], [known, *form.settings], **QUIET)
    made = [key, form.message, timer, form.cancel]
    form.make.click(page.make, form.all, made, **PLAIN_EVENT)


def _wire_history(page: PageEvents, tabs: gr.Tabs) -> None:
    form, parts = page.form, page.history
    jobs, further, chosen = gr.State([]), gr.State({}), gr.State([])
    listed = [jobs, further, parts.table, parts.older, parts.message, parts.box]
    seen = [parts.box, parts.clip, parts.facts, parts.message, parts.cancel, parts.really]
    gr.on([parts.refresh.click], lambda: page.listed({}), None, listed, **PLAIN_EVENT)
    tabs.select(lambda: page.listed({}), None, listed, **QUIET)
    parts.older.click(page.listed, further, listed, **PLAIN_EVENT)
    timer = gr.Timer(1.0, active=False)
    parts.table.select(page.chosen, jobs, [chosen, timer, *seen], **PLAIN_EVENT)
    timer.tick(page.follow, chosen, [chosen, parts.clip, parts.facts, timer], **QUIET)
    parts.cancel.click(page.end, chosen, seen, **PLAIN_EVENT)
    parts.delete.click(lambda: gr.update(visible=True), None, parts.really, **QUIET)
    parts.really.click(page.forget, chosen, listed, **PLAIN_EVENT)
    taken = [tabs, form.prompt, form.negative, form.seeds, form.task, *form.settings]
    parts.reuse.click(page.reuse, [jobs, chosen], taken, **PLAIN_EVENT)

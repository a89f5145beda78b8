"""What the page does: jobs made and followed, clips fetched and scored, pairs sent to a vote. No Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.generation_client import ENDED, Job, Refused
from experiments.web.form import PageForm, check_sides
from experiments.web.scores import PageScorer, ShownScore, as_json
from experiments.web.services import ModelSide, PageServices, label_of
from experiments.web.store import PageStore
from experiments.web.votes import VoteClip, VotePair, WrittenSets, add_to_vote, vote_name
from pretrain.config import one_line

AT_ONCE = 8  # requests to the services
LISTED = 20


@dataclass(frozen=True)
class SeenClip:
    """A clip as the page shows it. job: {} where the service does not tell; problem: why, in one line;
    scores: None while they are made; files: by variant, once they are here."""

    label: str
    service: str
    seed: int
    job: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    files: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[ShownScore] | None = None

    @property
    def ended(self) -> bool:
        """Nothing of the service is awaited any more."""
        return self.job.get("status") in ENDED or bool(self.problem and not self.job)

    @property
    def settled(self) -> bool:
        """Nothing will change any more, scores included."""
        done = self.job.get("status") == "completed"
        return self.ended and (not done or bool(self.problem) or self.scores is not None)


@dataclass
class PageDesk:
    """Methods raise ValueError, ConnectionError or OSError in one line, to be shown on the page."""

    services: PageServices
    store: PageStore
    scorer: PageScorer
    _ended: dict[str, Job] = field(default_factory=dict)
    _described: set[tuple[str, bool]] = field(default_factory=set)  # ids, whether with scores

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="jobs")

    def close(self) -> None:
        """Ends its threads; jobs go on at their service."""
        self._pool.shutdown(cancel_futures=True)
        self.scorer.close()

    def make(self, form: PageForm, sides: Sequence[ModelSide]) -> dict[str, Any]:
        """Jobs for each seed and side: `{"warnings", "prompt", "pairs": [[A, B], ...]}` of plain JSON.

        Checked as a whole first; where a service refuses one all the same, those made before are cancelled.
        """
        voices = tuple(path and self.store.keep_voice(path) for path in form.references)
        frame = form.first_frame and self.store.keep_frame(form.first_frame)
        form = replace(form, references=voices, first_frame=frame)
        warnings = check_sides(form, sides, self.services)
        pairs: list[list[dict[str, Any]]] = []
        try:
            for seed in form.seeds:
                pairs.append([])
                for side in sides:
                    pairs[-1].append(self._create(form, side, seed))
        except (OSError, ValueError):
            self.cancel({"pairs": pairs})
            raise
        return {"warnings": warnings, "prompt": form.prompt, "pairs": pairs}

    def _create(self, form: PageForm, side: ModelSide, seed: int) -> dict[str, Any]:
        server = self.services.servers[side.service]
        job = server.create(
            references=form.references, first_frame=form.first_frame, **form.fields(side, seed)
        )
        asked = {
            "references": [path and str(path) for path in form.references],
            "first_frame": form.first_frame and str(form.first_frame),
            "mouth_boxes": form.mouth_boxes,
            "label": side.label,
        }
        self.store.note(job["id"], asked)
        return {"label": side.label, "service": side.service, "id": job["id"], "seed": seed}

    def look(self, comparison: Mapping[str, Any]) -> list[list[SeenClip]]:
        """Each clip of a comparison as it is now; finished ones are fetched and scored on the way."""
        clips = [clip for pair in comparison.get("pairs", ()) for clip in pair]
        seen = iter(list(self._pool.map(self._seen, clips)))
        return [[next(seen) for _ in pair] for pair in comparison.get("pairs", ())]

    def one(self, service: str, job: Mapping[str, Any]) -> SeenClip:
        """A job of the history."""
        label = self.store.asked(job["id"]).get("label") or label_of_job(service, job)
        return self._seen({"label": label, "service": service, "id": job["id"], "seed": job["seed"]})

    def _seen(self, clip: Mapping[str, Any]) -> SeenClip:
        found = SeenClip(clip["label"], clip["service"], clip["seed"])
        try:
            job = self._job(clip["service"], clip["id"])
        except (OSError, ValueError) as error:
            # a service that is away may be back: only what it does not know any more has ended
            gone = isinstance(error, Refused) and error.status == 404
            unknown = {} if gone else {"id": clip["id"], "status": "unknown"}
            return replace(found, job=unknown, problem=one_line(error, 300))
        found = replace(found, job=job)
        if job["status"] != "completed":
            return found
        try:
            files = self.store.fetch(self.services.servers[clip["service"]], job)
        except (OSError, ValueError) as error:
            return replace(found, problem=one_line(error, 300))
        scores = self.scorer.scores(job, files, self.store.asked(job["id"]))
        self._describe(clip["service"], job, scores)
        return replace(found, files=files, scores=scores)

    def _describe(self, service: str, job: Job, scores: Sequence[ShownScore] | None) -> None:
        """The lineage beside the clip, once without and once with its scores."""
        if (job["id"], scores is not None) not in self._described:
            self.store.write_lineage(job, self.services.servers[service].url, as_json(scores))
            self._described.add((job["id"], scores is not None))

    def _job(self, service: str, id: str) -> Job:
        if id not in self._ended:
            if service not in self.services.servers:
                raise Refused(f"{service}: not a service of this page any more", 404)
            job = self.services.servers[service].poll(id)
            if job["status"] not in ENDED:
                return job
            while len(self._ended) >= 1000:
                self._ended.pop(next(iter(self._ended)), None)
            self._ended[id] = job
        return self._ended[id]

    def cancel(self, comparison: Mapping[str, Any]) -> None:
        """All jobs that have not ended; what cannot be cancelled goes on."""
        for pair in comparison.get("pairs", ()):
            for clip in pair:
                with suppress(OSError, ValueError):
                    self.services.servers[clip["service"]].cancel(clip["id"])

    def forget(self, service: str, id: str) -> None:
        """A job and its clip, at the service and here."""
        self.services.servers[service].delete(id)
        self._ended.pop(id, None)
        self.store.forget(id)

    def history(self, after: Mapping[str, str]) -> tuple[list[tuple[str, Job]], dict[str, str], list[str]]:
        """(newest jobs of every service with its name, where the next page begins, a line for each service
        that does not answer). after: {} for the first page."""
        jobs: list[tuple[str, Job]] = []
        further: dict[str, str] = {}
        wrong: list[str] = []
        for name, server in self.services.servers.items():
            if after and name not in after:
                continue
            try:
                page = server.list(after=after.get(name, ""), limit=LISTED)
            except (OSError, ValueError) as error:
                wrong.append(one_line(error, 300))
                continue
            jobs += [(name, job) for job in page["data"]]
            further |= {name: page["last_id"]} if page["has_more"] else {}
        return sorted(jobs, key=lambda one: -one[1]["created_at"]), further, wrong

    def vote(self, text: str, pairs: Sequence[Sequence[SeenClip]]) -> WrittenSets:
        """Finished pairs to a vote of that name, under the page's folder."""
        name = vote_name(text)
        done = [pair for pair in pairs if len(pair) == 2 and all("video" in clip.files for clip in pair)]
        found = []
        for first, second in done:
            asked = self.store.asked(first.job["id"])
            boxes = asked.get("mouth_boxes")
            found.append(
                VotePair(
                    first=_vote_clip(first),
                    second=_vote_clip(second),
                    references=tuple(path and self.store.root / path for path in asked.get("references", ())),
                    meta={"mouth_boxes": boxes} if boxes else {},
                )
            )
        return add_to_vote(self.store.root / "votes" / name, found)


def label_of_job(service: str, job: Mapping[str, Any]) -> str:
    """Of what made a job, as the service tells it."""
    return label_of(service, job["model"], job.get("adapters") or {})


def _vote_clip(clip: SeenClip) -> VoteClip:
    return VoteClip(label=clip.label, job=clip.job, video=clip.files["video"], audio=clip.files.get("audio"))

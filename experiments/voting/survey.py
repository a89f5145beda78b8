"""Making a survey: its settings, its cases, their clips as they are shown, all written at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, select

from experiments.voting import tables
from experiments.voting.clips import ShownClip, make_clips, make_reference, shown_length
from experiments.voting.database import reading, writing
from experiments.voting.plan import SPOILT, Shares
from experiments.voting.sets import Case, content_digest
from finetune.curation import CurationConfig, curate, text_features
from finetune.gsb.votes import AXES
from pretrain.config import nearest
from pretrain.progress import track

SPOILT_CASES = 6  # with spoilt copies of each way, at most
# the axes on which the untouched original is the right answer
TELLING = {"desync": ("overall", "sync"), "voice": ("overall", "voice")}


@dataclass(frozen=True)
class SurveyConfig:
    """What is asked. Raises ValueError for an impossible value."""

    models: tuple[str, ...]
    ours: str
    axes: tuple[str, ...] = AXES
    seed: int = 0
    per_rater: int = 30  # pairs, without repeats and checks
    shares: Shares = dataclasses.field(default_factory=Shares)
    title: str = ""
    simulated: bool = False  # a program votes, not people

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError("one model alone cannot be compared; give A=FOLDER B=FOLDER")
        if "ours" in self.models and self.ours != "ours":
            raise ValueError(f"--ours {self.ours}: a model is called 'ours'; give it another name")
        if self.ours not in self.models:
            raise ValueError(f"--ours {self.ours}: {nearest(self.ours, self.models)}")
        if not self.axes or len(set(self.axes)) < len(self.axes) or set(self.axes) - set(AXES):
            raise ValueError(f"--axes {' '.join(self.axes)}: expected some of {', '.join(AXES)}, each once")
        if self.per_rater < 1:
            raise ValueError(f"--per-rater {self.per_rater}: expected at least 1 pair")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SurveyConfig:
        lists = {name: tuple(values[name]) for name in ("models", "axes")}
        return cls(**{**values, **lists, "shares": Shares(**values["shares"])})

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways of spoiling a copy that an axis of this survey tells."""
        return tuple(way for way in SPOILT if set(TELLING[way]) & set(self.axes))


@dataclass(frozen=True)
class Survey:
    """A survey in a database."""

    id: int
    name: str
    made_at: str
    config: SurveyConfig
    inputs: str

    @property
    def key(self) -> str:
        """Tells surveys of one name in several databases apart; the same in every export."""
        said = json.dumps([self.name, self.made_at, self.inputs])
        return hashlib.sha256(said.encode()).hexdigest()[:8]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def find_survey(connection: Connection, name: str | None = None) -> Survey:
    """By name; the only one where none is given. Raises ValueError naming those there are."""
    found = list_surveys(connection)
    if name is None and len(found) == 1:
        return found[0]
    for survey in found:
        if survey.name == name:
            return survey
    names = [survey.name for survey in found]
    if not names:
        raise ValueError("the database holds no survey; `nava gsb serve A=FOLDER B=FOLDER` makes one")
    if name is None:
        raise ValueError(f"--survey: there are several, name one: {', '.join(names)}")
    raise ValueError(f"--survey {name}: unknown; {nearest(name, names)}")


def list_surveys(connection: Connection) -> list[Survey]:
    rows = connection.execute(select(tables.surveys).order_by(tables.surveys.c.id)).mappings()
    return [
        Survey(row["id"], row["name"], row["made_at"], SurveyConfig.from_json(row["config"]), row["inputs"])
        for row in rows
    ]


def diverse(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` cases whose prompts stand for all (submodlib's facility location); 0 = all."""
    if not 0 <= count <= len(cases):
        raise ValueError(f"--cases {count}: there are {len(cases)}; 0 takes all")
    if not count or count == len(cases):
        return list(cases)
    features = text_features([case.prompt or "-" for case in cases])
    chosen = curate(features, np.ones(len(cases)), CurationConfig(count=count, seed=seed)).indices
    return [cases[index] for index in chosen]


def add_survey(
    engine: Engine, name: str, config: SurveyConfig, cases: Sequence[Case], folder: Path
) -> tuple[Survey, bool]:
    """(the survey of this name, whether it is new); the clips that are shown go to `folder`/NAME.

    A survey that is there goes on when sets and settings are the same. Raises ValueError otherwise,
    MediaError for a clip that cannot be shown.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
        raise ValueError(f"--survey {name!r}: expected up to 64 letters, digits, - and _")
    inputs = content_digest(cases)
    with reading(engine) as connection:
        known = {survey.name: survey for survey in list_surveys(connection)}
    if name in known:
        _check_same(known[name], config, inputs)
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{folder / name}: the clips of survey {name!r} are gone; name their --folder"
            )
        return known[name], False
    for case in cases:
        shown_length(list(case.clips.values()))
    place = folder / name
    if place.exists():
        raise ValueError(f"{place}: is there, but the database has no survey {name!r}; give another --survey")
    place.mkdir(parents=True, mode=0o700)
    try:
        made = list(_made(cases, config, place))
        with writing(engine) as connection:
            row = {"name": name, "made_at": now(), "config": config.as_json(), "inputs": inputs}
            number = connection.execute(tables.surveys.insert().values(row)).inserted_primary_key
            assert number is not None
            _insert(connection, number[0], made)
            return find_survey(connection, name), True
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _check_same(survey: Survey, config: SurveyConfig, inputs: str) -> None:
    if survey.inputs != inputs:
        raise ValueError(f"survey {survey.name!r} is there, of other clips; give another --survey")
    before, given = survey.config.as_json(), config.as_json()
    for key, value in given.items():
        if json.dumps(before[key]) != json.dumps(value):
            raise ValueError(
                f"survey {survey.name!r} is there with {key} {before[key]}, not {value}; votes of both "
                "cannot be mixed: give another --survey"
            )


def _made(
    cases: Sequence[Case], config: SurveyConfig, folder: Path
) -> Iterable[tuple[Case, list[ShownClip], float, list[str]]]:
    order = np.random.default_rng(config.seed).permutation(len(cases)).tolist()
    spoilt = set(order[:SPOILT_CASES]) if config.shares.attention else set()
    for index, case in track(enumerate(cases), len(cases), "cases made ready"):
        other = _other_voice(cases, index, config.seed)
        ways = [way for way in config.ways if way != "voice" or other] if index in spoilt else []
        model = config.models[order.index(index) % len(config.models)]
        clips = [case.clips[name] for name in config.models]
        video = other.clips[model].video if other else None
        shown, duration_s = make_clips(clips, folder, {model: ways}, video)
        yield case, shown, duration_s, [make_reference(path, folder) for path in case.references]


def _other_voice(cases: Sequence[Case], index: int, seed: int) -> Case | None:
    """A case with another voice: other references where cases have some, else any other."""
    mine = set(cases[index].references)
    others = [case for place, case in enumerate(cases) if place != index]
    apart = [case for case in others if not mine & set(case.references)]
    speaker = {_speaker(path) for path in cases[index].references}
    strangers = [case for case in apart if not speaker & {_speaker(path) for path in case.references}]
    pool = strangers or apart or others
    return pool[(seed + index) % len(pool)] if pool else None


def _speaker(path: Path) -> str:
    return path.stem.rpartition("_")[0] or path.stem


def _insert(
    connection: Connection, survey: int, made: Sequence[tuple[Case, list[ShownClip], float, list[str]]]
) -> None:
    for case, shown, duration_s, references in made:
        row = {
            "survey_id": survey,
            "case_id": case.case_id,
            "prompt": case.prompt,
            "kind": case.kind,
            "duration_s": duration_s,
            "references": references,
        }
        number = connection.execute(tables.cases.insert().values(row)).inserted_primary_key
        assert number is not None
        connection.execute(tables.clips.insert(), [{"case": number[0], **asdict(clip)} for clip in shown])

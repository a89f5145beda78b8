"""Whether a training's folder is kept, goes on, is extended, or holds another training: by its own record.

run.json lies beside the checkpoints and the model, and so travels with them: it holds the identity of what
was trained, field by field, and what was changed on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pretrain.files import read_json, write_json
from pretrain.launch.identity import Difference, Identity, difference, field_defaults
from pretrain.launch.states import complete_steps
from pretrain.launch.torchrun import IDENTITY, RESOLVED, STATE, read_state
from pretrain.storage import is_file, move_aside, trash_of, writing

Action = Literal["train", "keep", "resume", "extend", "refuse"]
DEPENDS, RESUMED = "depends", "resumed"  # of run.json, beside the facts that a model keeps
_ENDS = ("model", "adapter")  # what a training writes at its end; the first makes it a finished one


class TrainingRun(Protocol):
    """A training with a folder of its own."""

    @property
    def config(self) -> Any: ...
    @property
    def out(self) -> Path: ...
    @property
    def trash(self) -> Path | None: ...
    @property
    def anyway(self) -> bool: ...
    @property
    def code(self) -> Mapping[str, str]: ...
    @property
    def label(self) -> str: ...
    @property
    def checkpoints(self) -> Path: ...

    def states_in(self, folder: str) -> Path:
        """Where the states are with another `checkpoint.folder`."""
        ...

    def identity(self) -> dict[str, Any]:
        """Facts of the training that its model keeps."""
        ...

    def depends(self) -> Identity:
        """All that its result depends on."""
        ...

    def depended(self, facts: Mapping[str, Any], resolved: Mapping[str, Any]) -> Identity:
        """The same of a folder whose run.json has the facts alone, with resolved.json beside it."""
        ...

    def extends(self, finished: bool) -> tuple[str, ...]:
        """Settings with which it can go on past its end: the length, which must grow, then those of the
        schedule's end."""
        ...

    def past_end(self, length: int, only_length: bool) -> str:
        """What becomes of the schedule where it goes on past its former length."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What becomes of a folder. `step`: of its newest complete state; `finished`: it holds a finished model;
    `counting`, `neutral` and `code`: what differs there from what is asked for."""

    action: Action
    step: int = 0
    finished: bool = False
    known: bool = True  # there is a record
    longer: bool = False  # more steps are asked for than the training there had
    counting: tuple[Difference, ...] = ()
    neutral: tuple[Difference, ...] = ()
    code: tuple[Difference, ...] = ()

    @property
    def can_go_on_anyway(self) -> bool:
        """There is a state to go on from, and something left to do."""
        return self.step > 0 and (self.longer or not self.finished)

    def said(self) -> str:
        """Everything that differs, in one line; '' where nothing does."""
        return ", ".join(map(str, (*self.counting, *self.neutral, *self.code)))


def verdict_of(run: TrainingRun) -> Verdict:
    """What becomes of run.out, by what is recorded there. Raises ValueError for a damaged record."""
    before, now = recorded(run.out, run) or recorded(run.checkpoints, run), run.depends()
    state, step = read_state(run.out), max(complete_steps(run.checkpoints), default=0)
    has_model = (run.out / "model").is_dir()
    done = is_finished(run.out, state) and not _is_shorter(state, before, run)
    if not (has_model or step):
        elsewhere = _left_elsewhere(run, before)
        return Verdict("refuse", counting=(elsewhere,)) if elsewhere else Verdict("train")
    if before is None:
        return Verdict("refuse", step, done, known=False)
    changes = difference(before, now)
    longer = _is_longer(changes, run.extends(done))
    if not changes:
        action: Action = "keep" if done else "resume" if step else "refuse"
    else:
        only_longer = longer and step and {change.field for change in changes} <= set(run.extends(done))
        action = "extend" if only_longer else "refuse"
    parts = {part: tuple(difference(before, now, (part,))) for part in ("neutral", "code")}
    return Verdict(action, step, done, True, longer, tuple(changes), **parts)


def is_finished(out: Path, state: Mapping[str, Any]) -> bool:
    """The training in `out` ended, by its `state`, and its model is there."""
    return state.get("status") == "finished" and (out / "model" / "config.json").is_file()


def _is_shorter(state: Mapping[str, Any], before: Identity | None, run: TrainingRun) -> bool:
    """The training that ended had fewer steps than the record says: its extension was stopped before it
    began, by a version that wrote the record first."""
    length = before.settings.get(run.extends(True)[0]) if before and run.extends(True) else None
    return isinstance(length, int) and "steps" in state and state["steps"] < length


def _left_elsewhere(run: TrainingRun, before: Identity | None) -> Difference | None:
    """The place for states, where it changed while the former one has some: they would be left behind."""
    name = "checkpoint.folder"
    former = before.neutral.get(name) if before else None
    if (
        former is None
        or run.states_in(former) == run.checkpoints
        or not complete_steps(run.states_in(former))
    ):
        return None
    return Difference(f"{name} (states are in the first)", str(run.states_in(former)), str(run.checkpoints))


def _is_longer(changes: list[Difference], extends: tuple[str, ...]) -> bool:
    length = next((change for change in changes if extends and change.field == extends[0]), None)
    return length is not None and length.before is not None and length.after > length.before


def refusal(verdict: Verdict, out: Path, offers: str) -> str:
    """One line: the folder, each field that differs with both values, and what can be done."""
    if verdict.counting:
        asked = ", ".join(change.asked() for change in verdict.counting)
        what = f"trained with other inputs or settings ({asked})"
    elif not verdict.known:
        what = f"nothing is known of the training there (no {IDENTITY})"
    else:
        what = f"holds a model and neither a state of its training nor a finished {STATE}"
    return f"{out}: {what}; {offers}"


def recorded(folder: Path, run: TrainingRun) -> Identity | None:
    """Identity of the training in `folder`, None without a record. Raises ValueError where it is damaged.

    What the record does not tell, because it is older than the field, counts as the field's default.
    """
    path = folder / IDENTITY
    if not is_file(path):
        return None
    facts, now = read_json(path, f"remove {folder} or train into another folder"), run.depends()
    if DEPENDS in facts:
        before = Identity.from_json(facts[DEPENDS])
    else:
        resolved = run.out / RESOLVED
        before = run.depended(facts, read_json(resolved, f"remove {run.out}") if is_file(resolved) else {})
        before = dataclasses.replace(
            before, inputs={**now.inputs, **before.inputs}, parents={**now.parents, **before.parents}
        )
    defaults = field_defaults(run.config)
    filled = {
        part: {
            **{name: defaults[name] for name in getattr(now, part) if name in defaults},
            **getattr(before, part),
        }
        for part in ("settings", "neutral")
    }
    return dataclasses.replace(before, **filled)


def claim(run: TrainingRun) -> Verdict:
    """Make run.out this run's: its record is written unless a finished training is kept. Returns the verdict.

    With run.anyway it goes on from the newest state although fields that count differ. What is extended loses
    its end: its model, and the adapter of a fine-tuning, are moved aside. Raises ValueError naming each field
    that differs.
    """
    verdict = verdict_of(run)
    if verdict.action == "refuse" and not (run.anyway and verdict.can_go_on_anyway):
        raise ValueError(refusal(verdict, run.out, "give another folder, or move this one away"))
    if verdict.action == "keep":
        return verdict
    if read_state(run.out).get("status") == "finished":
        # before the record: a kill in between leaves the training that was there, without its end
        for name in _ENDS:
            move_aside(run.out / name, run.trash or trash_of(run.out), f"{run.label}-{name}")
        (run.out / STATE).unlink(missing_ok=True)
    write_record(run.out, run, verdict)
    return verdict


def write_record(folder: Path, run: TrainingRun, verdict: Verdict) -> None:
    """run.json: facts, identity, and the changes with which the training went on, from which step."""
    path = folder / IDENTITY
    before = read_json(path, f"remove {folder}").get(RESUMED, []) if is_file(path) else []
    changes = [*verdict.counting, *verdict.neutral, *verdict.code] if verdict.action != "train" else []
    if verdict.action == "train":
        before = []
    elif changes:
        before = [
            *before,
            {"step": verdict.step, "as": _as(verdict), "changes": [list(item) for item in changes]},
        ]
    record = {**run.identity(), DEPENDS: run.depends().to_json()}
    write_json(path, record | ({RESUMED: before} if before else {}), through=writing)


def _as(verdict: Verdict) -> str:
    return {"extend": "extended", "refuse": "resume-anyway"}.get(verdict.action, "resumed")

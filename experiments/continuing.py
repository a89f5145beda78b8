"""What becomes of a training that is there: kept, gone on with, extended, moved aside, or refused by name.

`nava pretrain`, `nava align` and the stages that DVC calls decide here, by the record that lies in the folder
(`pretrain.launch.continuing`). dvc.lock and out/runs only tell which code made it and whether it is whole.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.provenance import locked_output, md5_of
from experiments.runs.run import marker_of, read_record, running_key
from pretrain.files import read_json
from pretrain.launch.torchrun import RESOLVED

if TYPE_CHECKING:
    from experiments.job import StageJob
    from pretrain.launch.continuing import TrainingRun, Verdict


@dataclass(frozen=True)
class Wish:
    """What the command line asks for where a training is there."""

    resume: bool = True  # False: start over, whatever is there
    anyway: bool = False  # go on although what counts differs
    aside: bool = False  # start over where what counts differs
    elsewhere: str = "--out"  # option that names another folder

    def __post_init__(self) -> None:
        if sum((not self.resume, self.anyway, self.aside)) > 1:
            raise ValueError("--no-resume, --resume-anyway and --move-aside exclude each other; give one")

    @property
    def replaces(self) -> bool:
        return self.aside or not self.resume


@dataclass(frozen=True)
class Decision:
    """train: False keeps what is finished. go_on: whether the folder is kept; None: nothing is trained there.
    notes: tags of the run."""

    train: bool
    go_on: bool | None = None
    notes: dict[str, str] = field(default_factory=dict)


def decide(run: TrainingRun, job: StageJob, wish: Wish) -> Decision:
    """What `nava pretrain` and `nava align` do, printed in a line. Raises ValueError for a training that
    would be lost, with each field that differs and the ways to go."""
    verdict = whole_verdict(run, job)
    if verdict.action == "train":
        return Decision(True)
    if not wish.resume or (verdict.action == "refuse" and wish.aside):
        return _anew(run)
    if verdict.action == "refuse":
        if not wish.anyway or not (verdict.step or verdict.finished):
            raise ValueError(refused(verdict, run, wish))
        if not verdict.can_go_on_anyway:
            print(
                f"{run.label}: finished, kept as it is although {verdict.said() or 'nothing is known of it'}"
            )
            return Decision(False)
    if verdict.action == "keep" and is_unrecorded(run, job):
        return _recorded_yet(run)
    if verdict.action == "keep":
        code = f"; the code differs since: {_names(verdict)}" if verdict.code else ""
        print(
            f"{run.label}: finished, with these inputs and settings; kept, its model is {run.out / 'model'} "
            f"(--no-resume trains it again){code}"
        )
        return Decision(False)
    return _going_on(verdict, run)


def decide_for_dvc(run: TrainingRun, job: StageJob) -> Decision:
    """What a stage that DVC calls does: a result follows from its settings, inputs and code alone, so only an
    interrupted training goes on with other code, and none is extended. What differs makes room."""
    verdict = whole_verdict(run, job)
    if verdict.action == "train":
        return Decision(True)
    if verdict.action == "keep" and not verdict.code and is_unrecorded(run, job):
        return _recorded_yet(run)
    if verdict.action == "keep" and not verdict.code:
        other = f" ({verdict.said()} changes no number)" if verdict.neutral else ""
        print(f"{run.label}: same inputs and settings as the training in {run.out}, kept{other}")
        return Decision(False)
    if verdict.action == "resume":
        return _going_on(verdict, run)
    counting = ", ".join(map(str, verdict.counting)) or (
        f"code: {_names(verdict)}" if verdict.code else "no record"
    )
    print(f"{run.label}: trained anew, as what is there has another identity ({counting})")
    return _anew(run)


def _anew(run: TrainingRun) -> Decision:
    """States that lie elsewhere make room here; the run moves its folder itself."""
    from pretrain.launch.launch import set_states_aside

    set_states_aside(run)
    return Decision(True, False)


def _recorded_yet(run: TrainingRun) -> Decision:
    print(
        f"{run.label}: finished, but its run was stopped before the model was recorded; nothing is trained "
        "again, the run goes on to its end"
    )
    return Decision(True, True)


def is_unrecorded(run: TrainingRun, job: StageJob) -> bool:
    """The folder was last trained by the very run that the stage's marker names: it ended before its record,
    so its samples, its model in MLflow and its record are still to come."""
    marker, resolved = marker_of(run.label, job.layout), run.out / RESOLVED
    if not (marker.is_file() and resolved.is_file()):
        return False
    key, record = running_key(run.label, job.layout), read_record(job.layout, run.label)
    if record and record.key == key and record.output_md5 == md5_of(run.out):
        marker.unlink()  # all that was left to do
        return False
    trackers = read_json(resolved, f"remove {run.out}").get("trackers", {})
    folders = [Path(str(options.get("folder", ""))).name for options in trackers.values()]
    return bool(key) and key in folders


def whole_verdict(run: TrainingRun, job: StageJob) -> Verdict:
    """The verdict of the folder, with the code of records that have none, and of a whole folder.

    A finished training whose files were changed exports its model again from its last state; without one it
    is refused.
    """
    from pretrain.launch.continuing import verdict_of
    from pretrain.launch.identity import Identity, difference
    from pretrain.launch.torchrun import STATE

    verdict = verdict_of(run)
    if verdict.action != "keep" or is_unrecorded(run, job):
        return verdict
    lock_md5, lock_code = locked_output(run.label, run.out, job.root)
    record = read_record(job.layout, run.label)
    made = {lock_md5: lock_code, **({record.output_md5: record.inputs} if record else {})}
    made.pop("", None)
    found = md5_of(run.out) if made else ""
    if made and found not in made:
        if not verdict.step:
            return dataclasses.replace(verdict, action="refuse")
        print(
            f"{run.out}: changed since it was finished; its model is exported again from step {verdict.step}"
        )
        (run.out / STATE).unlink()
        return verdict_of(run)
    if not verdict.code and found and not _has_code(run):
        before = Identity(code={path: md5 for path, md5 in made[found].items() if path in run.code})
        verdict = dataclasses.replace(
            verdict, code=tuple(difference(before, Identity(code=run.code), ("code",)))
        )
    return verdict


def _has_code(run: TrainingRun) -> bool:
    from pretrain.launch.continuing import recorded

    before = recorded(run.out, run)
    return before is not None and bool(before.code)


def refused(verdict: Verdict, run: TrainingRun, wish: Wish) -> str:
    """The refusal in one line, with what can be done."""
    from pretrain.launch.continuing import refusal

    on = "--resume-anyway to keep it as it is, " if verdict.finished else ""
    on = "--resume-anyway to go on all the same, " if verdict.can_go_on_anyway else on
    trash = run.trash.as_posix() if run.trash else "the trash"
    return refusal(
        verdict,
        run.out,
        f"give {on}--move-aside to start over (what is there is moved to {trash}), or "
        f"{wish.elsewhere} for another folder",
    )


def _going_on(verdict: Verdict, run: TrainingRun) -> Decision:
    """Says in one line what differs, and notes it."""
    if verdict.code:
        print(f"{run.label}: warning: goes on with other code than it began with: {_names(verdict)}")
    others = dataclasses.replace(verdict, code=()).said()
    notes = {"nava.resumed_with": f"{verdict.said()} at step {verdict.step}"} if verdict.said() else {}
    if verdict.action == "extend":
        before, after = next(
            (c.before, c.after) for c in verdict.counting if c.field == run.extends(False)[0]
        )
        print(
            f"{run.label}: extended from {before} to {after}, goes on from {verdict.step} with {others}; "
            f"{run.past_end(before, len(verdict.counting) == 1)}"
        )
        notes["nava.extended"] = f"{before} -> {after}"
    elif others:
        verb = "goes on all the same" if verdict.action == "refuse" else "goes on"
        print(f"{run.label}: {verb} from step {verdict.step} with {others}")
    return Decision(True, True, notes)


def _names(verdict: Verdict) -> str:
    return ", ".join(change.field.removeprefix("code.") for change in verdict.code)


def check_all(runs: list[TrainingRun], job: StageJob, wish: Wish) -> None:
    """Check several stages in a row before the first is trained. Raises ValueError where one would be
    refused, also because an earlier one gives another model."""
    from pretrain.launch.continuing import verdict_of

    trained = ""
    for run in runs:
        verdict = verdict_of(run)
        if verdict.action == "refuse" and not (wish.replaces or wish.anyway):
            raise ValueError(refused(verdict, run, wish))
        if trained and verdict.action != "train" and not (wish.replaces or wish.anyway):
            alone = f"--stage {trained.removeprefix('pretrain_')}"
            raise ValueError(
                f"{run.out}: trained from the model of {trained}, which is trained on or anew; give {alone} "
                "for that one alone, --resume-anyway to keep this one, or --move-aside to train both"
            )
        if verdict.action in ("train", "extend", "resume") or (verdict.action == "refuse" and wish.replaces):
            trained = trained or run.label

"""Tuning a prompt rewriter as a tracked run: what is kept, what goes on, what would be lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.continuing import Wish
from experiments.layout import Layout
from experiments.runs.run import Interrupted, can_resume, tracked, unchanged
from experiments.runs.tracker import SpoolTracker
from finetune.rewriter.checkpoints import FOLDER, IDENTITY, newest
from finetune.rewriter.config import Algorithm, GrpoTuning, Tuning, described
from finetune.rewriter.tune import TuneResult
from pretrain.files import read_json, write_json
from pretrain.launch import torchrun
from pretrain.launch.continuing import DEPENDS, Verdict, refusal
from pretrain.launch.identity import Identity, difference, flat

STAGE, RECORD = "rewriter", torchrun.IDENTITY


def tune_tracked(
    algorithm: Algorithm,
    config: Tuning,
    made_of: Mapping[str, str],
    layout: Layout,
    root: Path,
    wish: Wish,
    work: Callable[[SpoolTracker], TuneResult],
    tags: Mapping[str, str],
    sources: Sequence[Path],
) -> None:
    """Run `work` in OUT/rewriter. `made_of`: digests of model and data, part of the run's settings; an
    interrupted run of the same goes on. wish: what becomes of another one that is there.

    Raises ValueError where another tuned rewriter would be replaced, naming each field that differs, or one
    of `sources` with it, Interrupted when it was stopped before its last step.
    """
    if wrong := next(
        (path for path in sources if path.resolve().is_relative_to(layout.rewriter.resolve())), None
    ):
        raise ValueError(
            f"{wrong}: lies in {layout.rewriter}, which this tuning replaces; give --out for another folder"
        )
    settings = json.loads(json.dumps({"algorithm": algorithm, "rewriter": described(config), **made_of}))
    identity = Identity(settings=flat({"algorithm": algorithm, **described(config)}), inputs=dict(made_of))
    if wish.resume and unchanged(STAGE, settings, layout, root):
        print(
            f"{layout.rewriter}: finished, with these inputs and settings; kept (--no-resume tunes it again)"
        )
        return
    go_on = None if wish.resume else False  # None: an interrupted run of these settings goes on
    if wish.resume and _holds_tuning(layout.rewriter) and not can_resume(STAGE, settings, layout, root):
        go_on = _goes_on(identity, layout, wish)
        if go_on is None:
            return
    with tracked(STAGE, algorithm, settings, layout, root, resume=True, go_on=go_on) as tracker:
        write_json(layout.rewriter / RECORD, {DEPENDS: identity.to_json()})
        tracker.set_tags({"nava.algorithm": algorithm, **tags})
        tuned = work(tracker)
        if tuned.status != "finished":
            raise Interrupted(
                f"rewriter {algorithm} stopped after step {tuned.step} with a checkpoint; the same command "
                "goes on"
            )
        tracker.log_model(tuned.adapter, "rewriter-adapter", {"nava.algorithm": algorithm})
        tracker.log_model(tuned.model, "rewriter", {"nava.algorithm": algorithm})
    print(
        f"adapter  {tuned.adapter}\nmodel    {tuned.model}   (vllm serve {tuned.model}; nava rewrite ... "
        "--model)"
    )


def _goes_on(identity: Identity, layout: Layout, wish: Wish) -> bool | None:
    """What becomes of another tuning that is there: it goes on, makes room (False), or is kept (None).

    Raises ValueError, naming each field that differs with both values, where nobody asked for one of these.
    """
    out, before = layout.rewriter, _recorded(layout.rewriter, identity)
    if wish.aside:
        return False
    finished = (out / "model").is_dir()
    changes = tuple(difference(before, identity)) if before else ()
    steps = next((change for change in changes if change.field == "steps"), None)
    longer = steps is not None and (steps.before or 0) < steps.after
    verdict = Verdict("refuse", newest(out)[0], finished, before is not None, longer, changes)
    if not wish.anyway or not (verdict.step or finished):
        on = "--resume-anyway to keep it as it is, " if finished else ""
        on = "--resume-anyway to go on all the same, " if verdict.can_go_on_anyway else on
        aside = f"--move-aside to start over (what is there is moved to {layout.trash.as_posix()})"
        raise ValueError(refusal(verdict, out, f"give {on}{aside}, or --out for another folder"))
    if not verdict.can_go_on_anyway:
        print(f"{out}: finished, kept as it is although {verdict.said() or 'nothing is known of it'}")
        return None
    (out / IDENTITY).unlink(missing_ok=True)  # the folder is the new settings' from here on
    print(f"{out}: goes on all the same from step {verdict.step} with {verdict.said()}")
    return True


def _recorded(out: Path, identity: Identity) -> Identity | None:
    """Identity of the tuning in `out`; of one without a record, what its checkpoints tell."""
    if (out / RECORD).is_file():
        return Identity.from_json(read_json(out / RECORD, "--move-aside starts over")[DEPENDS])
    if not (out / IDENTITY).is_file():
        return None
    facts = read_json(out / IDENTITY, "--move-aside starts over")
    settings = flat({"algorithm": facts["algorithm"], **facts["config"]})
    return Identity(settings=settings, inputs={**identity.inputs, "model": str(facts["model"])})


def overridden(config: Any, settings: tuple[str, ...]) -> Any:
    """The settings of a tuning with KEY=VALUE put in. Raises ValueError naming the nearest key."""
    from experiments.recipes.load import parse_setting
    from pretrain.config import override

    together: dict[str, Any] = {}  # as some of them only go together, such as batch and micro_batch
    weights = dict(config.rewards) if isinstance(config, GrpoTuning) else {}
    for setting in settings:
        values = parse_setting(setting)
        if isinstance(values.get("rewards"), dict):
            values["rewards"] = weights = {**weights, **values["rewards"]}
        together |= values
    return override(config, together)


def _holds_tuning(folder: Path) -> bool:
    return (folder / "model").is_dir() or any((folder / FOLDER).glob("checkpoint-*"))

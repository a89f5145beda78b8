"""Join votes with clips' scores and fit a preference model, with its cross-validated accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.scoring.rows import ScoresFile, VotedClip, read_scored
from finetune.gsb.names import folded_name
from finetune.gsb.raters import check_raters, first_votes, kept_votes
from finetune.gsb.votes import AXES, Vote, VoteSet
from pretrain.jsonl import FieldError
from rewards.catalog import CATALOG
from rewards.preference import PreferenceModel
from rewards.preference_fit import PairVotes, PreferenceConfig, fit_preference
from rewards.recipes.preference import check_features

ClipsByCase = Mapping[tuple[str, str], list[VotedClip]]  # by model and case


def fit_votes(
    votes: VoteSet,
    files: Sequence[ScoresFile],
    features: Sequence[str],
    axis: str,
    keep_all_raters: bool,
    config: PreferenceConfig,
) -> tuple[PreferenceModel, dict[str, Any]]:
    """The model and its report as JSON.

    Each rater has a side bias; cross-validation folds are prompts. Repeats, attention checks and, unless all
    are kept, dropped raters do not count; votes on clips without scores are left out and counted. Raises
    FileNotFoundError or ValueError in one line: no vote counts or joins, a feature that no row has, a judge
    or a preference among the features, nothing to learn from.
    """
    check_features(features, CATALOG)
    known: dict[tuple[str, str], list[VotedClip]] = {}
    for file in files:
        for clip in read_scored(file, features):
            known.setdefault((folded_name(clip.model), folded_name(clip.case_id)), []).append(clip)
    counted = (
        first_votes(votes.votes) if keep_all_raters else kept_votes(votes.votes, check_raters(votes.votes))
    )
    on_axis = [vote for vote in counted if vote.axis == axis]
    if not on_axis:
        axes = (
            ", ".join(name for name in AXES if any(vote.axis == name for vote in counted))
            or "none that counts"
        )
        raise ValueError(
            f"{votes.path}: no vote on axis {axis!r} to count; there are votes on {axes} (--axis)"
        )
    joined = _joined(on_axis, known, votes.path)
    used = [vote for vote, _, _ in joined]
    _check_values(features, [clip for _, *both in joined for clip in both])
    model = fit_preference(features, _design(joined), config, simulated=any(vote.simulated for vote in used))
    skipped = {
        "read": len(votes.votes),
        "asked": len(on_axis),
        "without_clip": len(on_axis) - len(used),
        "without_score": model.skipped,
    }
    about = {
        "votes": {**skipped, "fitted": model.num_votes, "simulated": sum(vote.simulated for vote in used)},
        "axis": axis,
    }
    return model, {**about, "raters": len({vote.user_id for vote in used}), **report(model)}


def report(model: PreferenceModel) -> dict[str, Any]:
    """The model as JSON for a reader: NaN is null."""
    fit = model.held_out
    weights = zip(model.features, model.weights, model.weight_errors, model.scale, strict=True)
    return {
        "simulated": model.simulated,
        "features": {
            name: {"weight": weight, "standard_error": _finite(error), "sd": sd}
            for name, weight, error, sd in weights
        },
        "theta": model.theta,
        "tie": {"value": model.tie, "standard_error": _finite(model.tie_error)},
        "side": {"value": model.side, "standard_error": _finite(model.side_error)},
        "held_out": None
        if fit is None
        else {
            "votes": fit.votes,
            "decided": fit.decided,
            "accuracy": _finite(fit.accuracy),
            "chance": 0.5,
            "log_likelihood": fit.log_likelihood,
            "chance_log_likelihood": fit.chance_log_likelihood,
            "alone": {
                name: {"log_likelihood": log, "accuracy": _finite(hits)}
                for name, (log, hits) in fit.single.items()
            },
        },
    }


def _joined(
    votes: Sequence[Vote], known: ClipsByCase, source: Path
) -> list[tuple[Vote, VotedClip, VotedClip]]:
    """(vote, left clip, right clip) in an order independent of the file's."""
    found = []
    for vote in sorted(
        votes, key=lambda vote: (vote.case_id, vote.user_id, vote.left_model, vote.right_model, vote.choice)
    ):
        left, right = (_find(vote, side, known, source) for side in ("left", "right"))
        if left and right:
            if left.prompt and right.prompt and left.prompt != right.prompt:
                raise ValueError(
                    FieldError(
                        vote.line, "case_id", f"the clips of {vote.case_id!r} have different prompts"
                    ).at(source)
                )
            found.append((vote, left, right))
    if not found:
        models, cases = sorted({model for model, _ in known}), sorted({case for _, case in known})
        raise ValueError(
            f"{source}: none of {len(votes)} votes is on clips that were scored; votes are on "
            f"{', '.join(votes[0].pair)} and cases like "
            f"{votes[0].case_id!r}, scores of {', '.join(models)} and cases like {cases[0]!r} (--scores "
            "MODEL=FILE)"
        )
    return found


def _find(vote: Vote, side: str, known: ClipsByCase, source: Path) -> VotedClip | None:
    """Look up by model and case, and by digest if both sides have one."""
    model, digest = getattr(vote, f"{side}_model"), getattr(vote, f"{side}_sha256")
    candidates = known.get((model, vote.case_id), [])
    if exact := [clip for clip in candidates if digest and clip.sha256 == digest]:
        return exact[0]
    possible = [clip for clip in candidates if not digest or not clip.sha256]
    if candidates and not possible:
        message = (
            f"{digest[:12]}... is not {candidates[0].sha256[:12]}... of the clip that was scored; the "
            "votes are about another clip"
        )
        raise ValueError(FieldError(vote.line, f"{side}_sha256", message).at(source))
    if len(possible) > 1:
        message = (
            f"{len(possible)} scored clips of {model!r} answer case {vote.case_id!r}; give one a case "
            "(--scores MODEL=FILE#SOURCE)"
        )
        raise ValueError(FieldError(vote.line, "case_id", message).at(source))
    return possible[0] if possible else None


def _check_values(features: Sequence[str], clips: Sequence[VotedClip]) -> None:
    for place, feature in enumerate(features):
        if not any(math.isfinite(clip.values[place]) for clip in clips):
            raise ValueError(
                f"preference: {feature!r} is NaN for every clip that was voted on; leave it out or mend its "
                "scores"
            )


def _design(joined: Sequence[tuple[Vote, VotedClip, VotedClip]]) -> PairVotes:
    """The left clip is first; groups are prompts, or cases where prompts are unknown."""
    return PairVotes(
        first=np.array([left.values for _, left, _ in joined]),
        second=np.array([right.values for _, _, right in joined]),
        labels=np.array([("right", "tie", "left").index(vote.choice) - 1 for vote, _, _ in joined]),
        sides=np.ones(len(joined), dtype=int),
        raters=[vote.user_id for vote, _, _ in joined],
        groups=[left.prompt or vote.case_id for vote, left, _ in joined],
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""`nava gsb`: votes on clips to statistics, to preference pairs for training, and to a reward that weighs as
they do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.commands.options import JsonFlag

if TYPE_CHECKING:
    from finetune.gsb.pairs import ClipRef, PreferencePair
    from finetune.gsb.votes import VoteSet

Axis = Literal["overall", "sync", "voice", "picture"]
VotesFile = Annotated[Path, tyro.conf.Positional]
Names = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="NAME", help="the allowed models; each must have been compared"),
]
ScoreFiles = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="[MODEL=]FILE[#SOURCE]", help="scores.jsonl of `nava score`; #SOURCE: only those rows of it"
    ),
]
Features = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="NAME", help="rewards in the scores, or reward.part")
]
SurveyPlace = Annotated[
    str,
    tyro.conf.arg(metavar="PLACE", help="--votes of `nava gsb serve`; --survey-name where it has several"),
]
TrackFlag = Annotated[bool, tyro.conf.arg(help="--no-track: no run in MLflow for --survey")]
Indices = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="[MODEL=]INDEX",
        help="index.jsonl of `nava generate` or folder of it, or the store of `nava rollout`",
    ),
]


def stats(
    votes: VotesFile,
    /,
    axis: Axis | None = None,
    ours: str | None = None,
    models: Names = (),
    keep_all_raters: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Win, tie, lose against every baseline from a votes JSONL (user_id, left_model, right_model, choice,
    ours_side, case_id).

    GSB = (good - bad) / n with its 95 % interval (analytic, or bootstrap over raters or prompts where that is
    wider), exact sign test with Holm's correction, Bradley-Terry-Davidson strengths with tie parameter nu and
    side effect, agreement of raters. Repeats and attention checks are not counted; raters who fail the fixed
    rule are dropped unless --keep-all-raters. Names are compared without blanks around them and in one
    Unicode form; those that differ by case only are counted apart, with a warning.
    """
    from finetune.gsb.summary import summarise
    from finetune.gsb.votes import read_votes

    found = summarise(read_votes(votes, ours, models), axis, models, keep_all_raters)
    print(json.dumps(found, indent=1, allow_nan=False)) if as_json else _show(found)


def export(
    votes: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    clips: Indices = (),
    survey: SurveyPlace = "",
    survey_name: str | None = None,
    out: Path = Path("pairs.jsonl"),
    ours: str | None = None,
    keep_all_raters: bool = False,
    as_json: JsonFlag = False,
    track: TrackFlag = True,
) -> None:
    """Turn votes into preference pairs for training: a row for each case and pair of clips, with counts and a
    label per axis.

    +1 the first clip wins, 0 Same, -1 the second, null where nobody was asked; the most frequent answer
    decides, a draw is Same. Clips are found by model and case, and by their digest where the votes have one.
    --clips is given per model as MODEL=INDEX (several clips of a case are MODEL#0, MODEL#1 ...), or as an
    index whose rows name their model. `nava align --pairs` learns from pairs of clips of one rollout store.
    --survey writes the votes of `nava gsb serve` to VOTES (votes.jsonl) first, as a run in MLflow with the
    page of results; then --clips may be left out. Files that are there and differ go to the trash.
    """
    if survey:
        votes = votes or Path("votes.jsonl")
        _export_survey(survey, survey_name, votes, clips, out, ours, keep_all_raters, as_json, track)
        return
    if votes is None or not clips:
        missing = "VOTES" if votes is None else "--clips"
        raise ValueError(f"{missing}: missing; give a votes JSONL and --clips, or --survey PLACE")
    _export_pairs(votes, clips, out, ours, keep_all_raters, as_json)


def _export_survey(
    place: str,
    name: str | None,
    votes: Path,
    clips: tuple[str, ...],
    out: Path,
    ours: str | None,
    keep_all_raters: bool,
    as_json: bool,
    track: bool,
) -> None:
    from experiments.commands.gsb_survey import exported

    def write_pairs() -> None:
        if clips:
            _export_pairs(votes, clips, out, ours, keep_all_raters, as_json)

    pairs, sources = out if clips else None, [path for _, path in map(index_of, clips)]
    survey, rows = exported(place, name, votes, pairs, write_pairs, track, sources)
    print(f"{votes}: {rows} votes of survey {survey}", file=sys.stderr)


def _export_pairs(
    votes: Path, clips: tuple[str, ...], out: Path, ours: str | None, keep_all_raters: bool, as_json: bool
) -> None:
    from finetune.gsb.pairs import pair_up, read_clips, tie_shares, write_pairs
    from finetune.gsb.raters import check_raters, first_votes, kept_votes
    from finetune.gsb.votes import read_votes
    from pretrain.owned import replaced_file

    found = read_votes(votes, ours)
    warn_of(found)
    sources = [index_of(text) for text in clips]
    by_source = {source: read_clips(source, model) for model, source in sources}
    known = [clip for listed in by_source.values() for clip in listed]
    counted = (
        first_votes(found.votes) if keep_all_raters else kept_votes(found.votes, check_raters(found.votes))
    )
    pairs = pair_up(counted, known, votes)
    with replaced_file(out) as path:
        write_pairs(path, pairs)
    shares = tie_shares(pairs)
    simulated = sum(pair.simulated for pair in pairs)
    store = _store_of(pairs, by_source)
    if as_json:
        facts = {
            "pairs": len(pairs),
            "votes": len(counted),
            "same_share": shares,
            "simulated_pairs": simulated,
        }
        print(json.dumps({**facts, "out": str(out), "store": str(store) if store else None}))
        return
    print(
        f"{out}: {len(pairs)} pairs from {len(counted)} votes"
        + (f", {simulated} of them from SIMULATED votes" if simulated else "")
    )
    print("share of Same: " + ", ".join(f"{axis} {share:.1%}" for axis, share in shares.items()))
    if store:
        print(f"to learn from them: nava align --pairs {out} --clips {store}")
    else:
        print(
            "no one of --clips is a rollout store that has all these clips: gsb_dpo learns from the "
            "pairs only where `nava align --clips` has their latents (clips of `nava rollout --mp4`)"
        )


def fit(
    votes: VotesFile,
    /,
    scores: ScoreFiles,
    features: Features,
    out: Path = Path("preference.json"),
    axis: Axis = "overall",
    ours: str | None = None,
    keep_all_raters: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Learn a reward from votes: Bradley-Terry with ties (Rao-Kupper) on the scores of other rewards.

    Writes a model for the reward `preference` (preference.model=FILE) of `nava score`, a rubric and `nava
    align`. Clips are found by model and case (case_id, else the clip's name), and by digest where both know
    it. Weights are per standard deviation of a feature; judges are refused. A model of simulated votes is
    marked as such, and its scores are called preference_simulated. An --out that differs goes to the trash.
    """
    from experiments.scoring.fit_preference import fit_votes
    from experiments.scoring.rows import ScoresFile
    from finetune.gsb.votes import read_votes
    from pretrain.owned import replaced_file
    from rewards.preference_fit import PreferenceConfig

    files = [ScoresFile.parsed(text) for text in scores]
    read = read_votes(votes, ours)
    warn_of(read)
    model, found = fit_votes(read, files, features, axis, keep_all_raters, PreferenceConfig())
    with replaced_file(out) as path:
        model.save(path)
    print(json.dumps({**found, "out": str(out)}, indent=1, allow_nan=False)) if as_json else _show_fit(
        found, out
    )


def _store_of(pairs: Sequence[PreferencePair], by_source: Mapping[Path, Sequence[ClipRef]]) -> Path | None:
    """The rollout store among the sources that has the clips of all pairs."""
    from finetune.rollout_store import META

    used = {clip for pair in pairs for clip in (pair.first, pair.second)}
    for source, listed in by_source.items():
        folder = source if source.is_dir() else source.parent
        if (folder / META).is_file() and used <= set(listed):
            return folder
    return None


def index_of(text: str, option: str = "--clips ") -> tuple[str | None, Path]:
    """(model or None, path); a path that exists is a path, also with a = in it.

    Raises ValueError for a model without a name."""
    from finetune.gsb.names import folded_name, name_problem

    model, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if problem := name_problem(model):
        raise ValueError(f"{option}{text}: {problem}; give MODEL=INDEX")
    return folded_name(model), Path(path)


def warn_of(votes: VoteSet) -> None:
    for warning in votes.warnings:
        print(f"warning: {votes.path}: {warning}", file=sys.stderr)


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    votes = found["votes"]
    if found["simulated"]:
        console.print(
            f"SIMULATED VOTES ({votes['simulated']} of {votes['read']}): no person was asked", style="bold"
        )
    left_out = ", ".join(
        f"{votes[name]} {name.replace('_', ' ')}"
        for name in ("repeats", "attention", "of_dropped_raters")
        if votes[name]
    )
    out = f" ({left_out} not counted)" if left_out else ""
    console.print(f"{votes['counted']} of {votes['read']} votes{out}, ours = {found['ours']}")
    axes = found.get("axes", {found["axis"]: found})
    for axis, part in axes.items():
        console.print(f"\n{axis}", style="bold")
        console.print(_pairs_table(part["pairs"]))
        if part["davidson"]:
            console.print(_strengths(part["davidson"]))
        if agreed := part["agreement"]:
            named = (
                ("Krippendorff alpha", "krippendorff_alpha"),
                ("Fleiss kappa", "fleiss_kappa"),
                ("Gwet AC1", "gwet_ac1"),
            )
            values = ", ".join(f"{label} {_number(agreed[name])}" for label, name in named)
            console.print(f"agreement over {agreed['items']} items: {values}")
    console.print(f"\n{_raters(found['raters'])}")
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)


def _show_fit(found: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console, votes, held_out = Console(markup=False, highlight=False), found["votes"], found["held_out"]
    if found["simulated"]:
        console.print(
            f"SIMULATED VOTES ({votes['simulated']} of those used): no person was asked", style="bold"
        )
    left_out = ", ".join(
        f"{votes[name]} {name.replace('_', ' ')}" for name in ("without_clip", "without_score") if votes[name]
    )
    fitted = f"{votes['fitted']} of {votes['asked']} votes on {found['axis']}" + (
        f" ({left_out})" if left_out else ""
    )
    console.print(f"{fitted}, {found['raters']} raters")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("feature", overflow="fold", min_width=8)
    for name in ("weight per sd", "error", "sd", "alone, held out"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in found["features"].items():
        alone = _share(held_out["alone"][name]["accuracy"]) if held_out else "-"
        table.add_row(
            name, f"{row['weight']:+.3f}", _number(row["standard_error"]), f"{row['sd']:.3g}", alone
        )
    console.print(table)
    tie, side = (
        f"{found[name]['value']:+.3f} (se {_number(found[name]['standard_error'])})"
        for name in ("tie", "side")
    )
    console.print(f"tie theta {found['theta']:.3f}, ln theta {tie}; left side {side}")
    if held_out:
        logs = (
            f"log-likelihood {held_out['log_likelihood']:.3f} a vote, chance "
            f"{held_out['chance_log_likelihood']:.3f}"
        )
        hits = (
            f"{_share(held_out['accuracy'])} of {held_out['decided']} decided votes, chance "
            f"{held_out['chance']:.0%}"
        )
        console.print(f"held-out prompts: accuracy {hits}; {logs}")
    else:
        console.print("held-out prompts: too few to say")
    console.print(str(out))


def _pairs_table(pairs: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("baseline", overflow="fold", min_width=8)
    for name in ("good", "same", "bad", "GSB", "95 %", "wins (Wilson)", "sign p", "Holm p"):
        table.add_column(name, justify="right", no_wrap=True)
    for baseline, pair in pairs.items():
        interval = f"{pair['gsb_low']:+.2f}..{pair['gsb_high']:+.2f}"
        wins = (
            "-"
            if pair["win_rate"] is None
            else f"{pair['win_rate']:.0%} ({100 * pair['win_low']:.0f}..{100 * pair['win_high']:.0f})"
        )
        counts = (str(pair[name]) for name in ("good", "same", "bad"))
        table.add_row(
            baseline,
            *counts,
            f"{pair['gsb']:+.2f}",
            interval,
            wins,
            f"{pair['sign_p']:.2g}",
            f"{pair['sign_p_holm']:.2g}",
        )
    return table


def _strengths(fit: Mapping[str, Any]) -> str:
    errors = fit["standard_error"]
    models = ", ".join(
        f"{model} {value:+.3f} (se {errors['strength'][model]:.3f})"
        for model, value in list(fit["strength"].items())[1:]
    )
    side = "fixed at 0" if fit["side_fixed"] else f"{fit['side']:+.3f} (se {errors['side']:.3f})"
    ties = f"tie nu {fit['tie']:.3f}; left side {side}; log-likelihood {fit['log_likelihood']:.2f}"
    return f"Davidson strengths, ours 0: {models}; {ties}"


def _raters(raters: Sequence[Mapping[str, Any]]) -> str:
    checks, passed, repeats, same = (
        sum(rater[name] for rater in raters)
        for name in ("attention_checks", "attention_passed", "swapped_repeats", "same_answer")
    )
    consistency = f"same answer in {same} of {repeats} swapped repeats" if repeats else "no swapped repeats"
    attention = f"passed {passed} of {checks} attention checks" if checks else "no attention checks"
    return f"raters: {len(raters)}, {consistency}, {attention}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"

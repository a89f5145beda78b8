"""The votes of a survey as an output of the pipeline: pairs, and the latents that they are about."""

from __future__ import annotations

import shutil
from pathlib import Path

from experiments.layout import PAIRS, VOTED_CLIPS
from experiments.runs.inputs import SHA256
from experiments.voting.export import export_votes, read_survey, results_page
from finetune.gsb.pairs import pair_up, read_clips, tie_shares, write_pairs
from finetune.gsb.raters import check_raters, kept_votes
from finetune.gsb.votes import read_votes
from finetune.rollout_store import INDEX, open_store
from pretrain.files import write_json
from pretrain.jsonl import dump
from pretrain.owned import MARKER

MEDIA = "media"


def export_survey(place: str, name: str, clips: Path, out: Path) -> dict[str, str]:
    """Write `out`/votes.jsonl, pairs.jsonl, clips/ (latents of the voted clips), votes.html and summary.json.

    place, name: of the survey; clips: the store that was voted on. Returns tags that name the survey and the
    digest of its clips, and no person. Raises FileNotFoundError or ValueError in one line: no such survey,
    nobody has voted, clips that are not those of the store.
    """
    store = open_store(clips)
    survey, found = read_survey(place, name)
    fresh = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        rows = export_votes(place, name, fresh / "votes.jsonl")
        kept = fresh / VOTED_CLIPS
        shutil.copytree(store.folder, kept, ignore=shutil.ignore_patterns(MEDIA, INDEX, MARKER, "*.tmp"))
        dump(kept / INDEX, ({k: v for k, v in row.items() if k != "video"} for row in store.places.values()))
        votes = read_votes(fresh / "votes.jsonl").votes
        counted = kept_votes(votes, check_raters(votes))
        pairs = pair_up(counted, read_clips(kept), place)
        write_pairs(fresh / PAIRS, pairs)
        (fresh / "votes.html").write_text(results_page(found), encoding="utf-8")
        summary = {
            "survey": survey.name,
            "survey_inputs": survey.inputs,
            "simulated": found["simulated"],
            "votes": rows,
            "pairs": len(pairs),
            "same_share": tie_shares(pairs),
        }
        write_json(fresh / "summary.json", summary)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return {
        "nava.survey": survey.name,
        "nava.survey_inputs": f"{SHA256}{survey.inputs}",
        "nava.simulated": str(found["simulated"]).lower(),
    }

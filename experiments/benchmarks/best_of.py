"""Best of n by the rubric of alignment against one sample, judged by the judges, with what each costs.

    python -m experiments.benchmarks.best_of --demo out --work /tmp/best_of --out docs/best_of.json

--demo: a finished demo's output. Of the first --limit held-out prompts of alignment it makes --candidates
clips by the pretrained model, of which the rubric (the recipe's `align.rubric`, z-scores among the clips of a
prompt) chooses one, and one clip by the aligned model. One sample is the mean over a prompt's candidates.
Judges are no part of the rubric. Differences are paired by prompt; intervals are 95 %, by bootstrap over
prompts. Cost is this process's time on the CPU (all threads, and children that ended). --work keeps clips and
scores: the same command goes on; cost is of calls that were not killed.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.benchmarks.harness import facts, make_parser, parse, shown, write
from experiments.candidates import BestOf, choose, with_candidates
from experiments.recipes.load import load_recipe
from experiments.scoring.clips import index_clips
from experiments.scoring.config import settings_from
from experiments.scoring.score_files import score_files, to_scores
from experiments.scoring.statistics import Interval, bootstrap_mean
from pretrain.files import read_json, write_json
from pretrain.generate import generate
from pretrain.generation.clip_folder import INDEX
from pretrain.jsonl import scan
from pretrain.markdown import markdown_table

JUDGES = (
    "intelligibility_pocketsphinx_judge",
    "wer_pocketsphinx_judge",
    "sync_judge",
    "picture_noise_judge",
)
ARMS = ("one sample", "best of n", "aligned, one sample")
STAGES = ("rollout", "curate_prompts", "votes", "align")  # what the aligned model cost beside the pretrained
Column = dict[str, float]  # clip -> score, NaN = none


@dataclass(frozen=True)
class DemoOutput:
    """Where a demo's output lies, and where the work goes."""

    demo: Path
    work: Path

    @property
    def codec(self) -> Path:
        return self.demo / "codec"

    def judges(self) -> tuple[str, ...]:
        return (f"sync_judge.model={self.demo / 'syncnet' / 'judge'}",)

    def rubric(self, weights: Mapping[str, float]) -> Path:
        """The rubric as a file of `nava score`."""
        path = self.work / "rubric.yaml"
        content = {
            "items": {name: {"weight": weight} for name, weight in weights.items()},
            "options": {"sync_mini": {"model": str(self.demo / "syncnet" / "reward")}},
        }
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path


class Costs:
    """Seconds on the CPU and clips of each step, over all calls that it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: dict[str, dict[str, float]] = read_json(path, "remove it") if path.is_file() else {}

    def count(self, step: str, work: Callable[[], int]) -> None:
        """work: answers how many clips it made or scored; of none, what was looked at does not count."""
        before = _cpu_s()
        if clips := work():
            known = self.steps.get(step, {"cpu_s": 0.0, "clips": 0})
            spent = round(known["cpu_s"] + _cpu_s() - before, 1)
            self.steps[step] = {"cpu_s": spent, "clips": known["clips"] + clips}
            write_json(self.path, self.steps)

    def per_clip(self, step: str) -> float:
        found = self.steps[step]
        return found["cpu_s"] / found["clips"]


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def scores_of(index: Path, rewards: Sequence[str], settings: Sequence[str], out: Path) -> dict[str, Column]:
    """Reward -> clip -> score of the clips of an index."""
    clips = list(index_clips(index))
    rows = score_files(clips, settings_from(rewards, None, settings, clips), out)
    names = [clip.name for clip in clips]
    return {
        reward: dict(zip(names, (score.value for score in to_scores(rows, reward)), strict=True))
        for reward in rewards
    }


def by_prompt(column: Column, clips: Mapping[str, Sequence[str]]) -> list[float]:
    """The mean score of each prompt's clips that have one."""
    found = []
    for names in clips.values():
        known = [column[name] for name in names if not math.isnan(column[name])]
        found.append(sum(known) / len(known) if known else math.nan)
    return found


def compared(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Means of the arms and paired differences: `{arm: interval, "B - A": interval}`."""
    found: dict[str, Interval] = {arm: bootstrap_mean(values[arm]) for arm in ARMS}
    for after, before in ((1, 0), (2, 0), (2, 1)):
        pairs = zip(values[ARMS[after]], values[ARMS[before]], strict=True)
        found[f"{ARMS[after]} - {ARMS[before]}"] = bootstrap_mean([one - other for one, other in pairs])
    return {name: interval.as_json() for name, interval in found.items()}


def measure(place: DemoOutput, count: int, limit: int) -> dict[str, Any]:
    """Makes and scores what is missing; `{metrics, costs, ...}`."""
    recipe = load_recipe("mini", Path("params.yaml") if Path("params.yaml").is_file() else None, ())
    rubric = recipe.align.rubric
    weights = {**rubric.video, **rubric.audio, **rubric.sync}
    prompts = place.demo / "corpus" / "prompts" / "align_held_out.jsonl"
    costs, candidates = Costs(place.work / "costs.json"), place.work / "candidates"
    for step, config, model, out in (
        ("candidates", with_candidates(recipe.generate, count), "pretrain/stage3", candidates),
        ("aligned", recipe.generate, "align", place.work / "aligned"),
    ):
        weights_of = place.demo / model / "model"
        asked = partial(generate, config, weights_of, place.codec, prompts, out, limit)
        costs.count(step, lambda asked=asked: asked()["made"])
    choices: list[BestOf] = []
    known, best = place.work / "best-candidates.jsonl", place.work / "best"

    def choosing() -> int:
        before = len(known.read_bytes().splitlines()) if known.is_file() else 0
        choices.extend(choose(candidates, place.rubric(weights), best))
        return count * len(choices) - before

    costs.count("chosen", choosing)
    rows = [row for _, row in scan(candidates / INDEX) if isinstance(row, dict)]
    groups = {choice.prompt_id: [] for choice in choices}
    for row in rows:
        groups[row["prompt_id"]].append(row["data_id"])
    chosen = {choice.prompt_id: [choice.row["data_id"]] for choice in choices}
    alone = {choice.prompt_id: [choice.prompt_id] for choice in choices}
    metrics: dict[str, Any] = {}
    rewarded = (f"sync_mini.model={place.demo / 'syncnet' / 'reward'}",)
    for role, names, settings in (("judge", JUDGES, place.judges()), ("rewarded", tuple(weights), rewarded)):
        made = scores_of(candidates / INDEX, names, settings, place.work / f"{role}_candidates.jsonl")
        aligned = scores_of(
            place.work / "aligned" / INDEX, names, settings, place.work / f"{role}_aligned.jsonl"
        )
        for name in names:
            values = [by_prompt(made[name], groups), by_prompt(made[name], chosen)]
            values.append(by_prompt(aligned[name], alone))
            metrics[name] = {"role": role, **compared(dict(zip(ARMS, values, strict=True)))}
    return {
        "prompts": len(choices),
        "candidates": count,
        "metrics": metrics,
        "costs": cost_table(costs, place, count),
    }


def cost_table(costs: Costs, place: DemoOutput, count: int) -> dict[str, Any]:
    """Seconds on the CPU for each clip that is kept, what alignment took once, and when it has paid."""
    one, aligned = costs.per_clip("candidates"), costs.per_clip("aligned")
    best = count * (one + costs.per_clip("chosen"))
    stages = {stage: read_json(place.demo / "runs" / f"{stage}.json", "run the demo") for stage in STAGES}
    once = sum(float(stage["duration_s"]) for stage in stages.values())
    return {
        "cpu_s_per_clip": {ARMS[0]: round(one, 2), ARMS[1]: round(best, 2), ARMS[2]: round(aligned, 2)},
        "of_which_scoring": round(count * costs.per_clip("chosen"), 2),
        "alignment_once_wall_s": round(once, 1),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as markdown."""
    rows = []
    for name, found in result["metrics"].items():
        cells = [_shown(found[arm]) for arm in ARMS]
        cells += [
            _shown(found[f"{ARMS[after]} - {ARMS[before]}"], sign=True) for after, before in ((1, 0), (2, 1))
        ]
        rows.append([f"`{name}` ({found['role']})", *cells])
    costs = result["costs"]["cpu_s_per_clip"]
    rows.append(
        ["seconds on the CPU for each clip that is kept", *(f"{costs[arm]:.1f}" for arm in ARMS), "", ""]
    )
    heads = ["", ARMS[0], f"best of {result['candidates']}", ARMS[2], "best - one", "aligned - best"]
    return markdown_table(heads, rows)


def _shown(found: Mapping[str, Any], sign: bool = False) -> str:
    return shown(found, sign=sign) + ("" if found["mean"] is None else f", n {found['n']}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--demo", type=Path, default=Path("out"), help="output of a finished demo")
    parser.add_argument("--work", type=Path, required=True, help="folder that clips and scores are kept in")
    parser.add_argument("--candidates", type=int, default=8, help="clips of each prompt")
    parser.add_argument("--limit", type=int, default=48, help="number of prompts")
    options = parse(parser)
    options.work.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    result = measure(DemoOutput(options.demo.resolve(), options.work), options.candidates, options.limit)
    torch.set_num_threads(threads)
    write({**facts("pocketsphinx"), **result}, options.out)
    print(table(result))


if __name__ == "__main__":
    main()

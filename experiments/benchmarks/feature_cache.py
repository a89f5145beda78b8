"""What a feature cache saves and costs: speed of sampling and judges' scores against the exact sampler.

    python -m experiments.benchmarks.feature_cache --demo out --work /tmp/cache --out docs/feature_cache.json

--demo: a finished demo's output. The pretrained model makes a clip of each of the first --limit prompts of
`pretrain_seen` by the recipe's `generate` section: exactly, with each --sigma-drop, and exactly with --steps
steps in place of the recipe's, which is another way to spend as much less. All from the same noise; judges
score them; differences to the exact clips are paired by prompt, intervals are 95 %, by bootstrap over
prompts. On the mini a step that reuses costs a ninth of one that computes, so 9 steps cost what a drop of
0.03 does (8 of 14 computed), and 7 what one of 0.05 does (6 of 14). `latents`: root mean square of the
difference to the exact ones over their deviation. Speed is that of sampling the first --clips clips alone,
process seconds on the CPU of --repeats turns, arm after arm within a turn. --work keeps clips and scores: the
same command goes on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from experiments.benchmarks.best_of import JUDGES, Column, DemoOutput, by_prompt, scores_of
from experiments.benchmarks.harness import facts, make_parser, parse, ratio, shown, write
from experiments.recipes.load import load_recipe
from experiments.scoring.statistics import bootstrap_mean
from pretrain.flow.reuse import FeatureCacheConfig
from pretrain.generate import generate
from pretrain.generation.clip_folder import INDEX
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import batches_of, clip_jobs
from pretrain.generation.maker import ClipMaker
from pretrain.jsonl import scan
from pretrain.markdown import markdown_table
from pretrain.progress import track
from pretrain.prompt import read_prompts

EXACT = "exact"
SCORED = (*JUDGES, "sim_resemblyzer")
Arms = Mapping[str, GenerateConfig]


def arms_of(
    config: GenerateConfig, drops: Sequence[float], steps: Sequence[int]
) -> dict[str, GenerateConfig]:
    """The samplers that are compared, the exact one first."""
    base = replace(config, keep_latents=True)
    found = {EXACT: base}
    for drop in drops:
        sampler = replace(base.sampler, cache=FeatureCacheConfig(sigma_drop=drop))
        found[f"sigma_drop {drop:g}"] = replace(base, sampler=sampler)
    for count in steps:
        found[f"{count} steps"] = replace(base, sampler=replace(base.sampler, steps=count))
    return found


def folder_of(place: DemoOutput, arm: str) -> Path:
    return place.work / arm.replace(" ", "_")


def speeds(place: DemoOutput, arms: Arms, prompts: Path, clips: int, repeats: int) -> dict[str, Any]:
    """Process seconds of sampling the first clips in one batch, and how many times as fast as exactly."""
    batch = batches_of(clip_jobs(read_prompts(prompts)[:clips], arms[EXACT]), arms[EXACT])[0]
    maker = ClipMaker.load(place.demo / "pretrain" / "stage3" / "model", place.codec, arms[EXACT])
    maker.latents(batch[:1])
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    turns = [(turn, arm) for turn in range(repeats) for arm in arms]
    for _, arm in track(turns, len(turns), "sampling"):
        maker.config = arms[arm]
        start = time.process_time()
        maker.latents(batch)
        seconds[arm].append(time.process_time() - start)
    return {
        arm: {
            "clips": len(batch),
            "cpu_s_per_clip": round(statistics.median(taken) / len(batch), 4),
            "times_as_fast": ratio(taken, seconds[EXACT]),
        }
        for arm, taken in seconds.items()
    }


def latent_errors(exact: Path, other: Path) -> dict[str, float]:
    """Of each modality: root mean square of the difference over the exact latents' deviation."""
    gaps: dict[str, list[float]] = {}
    for file in sorted(exact.glob("*.safetensors")):
        wanted, found = load_file(file), load_file(other / file.name)
        for name, latents in wanted.items():
            gap = (found[name] - latents).square().mean().sqrt() / latents.std()
            gaps.setdefault(name, []).append(float(gap))
    return {name: round(statistics.mean(values), 4) for name, values in gaps.items()}


def compared(scores: Mapping[str, Mapping[str, Column]], names: Sequence[str]) -> dict[str, Any]:
    """Reward -> arm -> its mean and the mean paired difference to the exact clips."""
    found: dict[str, Any] = {}
    for reward in SCORED:
        alone = {name: [name] for name in names}
        values = {arm: by_prompt(columns[reward], alone) for arm, columns in scores.items()}
        found[reward] = {
            arm: {
                "mean": bootstrap_mean(some).as_json(),
                "less_exact": bootstrap_mean(
                    [one - other for one, other in zip(some, values[EXACT], strict=True)]
                ).as_json(),
            }
            for arm, some in values.items()
        }
    return found


def measure(place: DemoOutput, arms: Arms, limit: int, clips: int, repeats: int) -> dict[str, Any]:
    """Makes and scores what is missing."""
    prompts = place.demo / "corpus" / "prompts" / "pretrain_seen.jsonl"
    model = place.demo / "pretrain" / "stage3" / "model"
    scores: dict[str, Mapping[str, Column]] = {}
    for arm, config in arms.items():
        folder = folder_of(place, arm)
        generate(config, model, place.codec, prompts, folder, limit)
        scores[arm] = scores_of(folder / INDEX, SCORED, place.judges(), place.work / f"{folder.name}.jsonl")
    rows = [row for _, row in scan(folder_of(place, EXACT) / INDEX) if isinstance(row, dict)]
    sampling = speeds(place, arms, prompts, min(clips, limit), repeats)
    exact = folder_of(place, EXACT)
    return {
        "prompts": len(rows),
        "sampler": f"{arms[EXACT].sampler.solver}, shift {arms[EXACT].sampler.shift:g}",
        "arms": {
            arm: {
                "steps": config.sampler.steps,
                "computed_steps": config.sampler.steps - config.sampler.reused_steps,
                **sampling[arm],
                "latents": latent_errors(exact, folder_of(place, arm)),
            }
            for arm, config in arms.items()
        },
        "metrics": compared(scores, [row["data_id"] for row in rows]),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as markdown: a column for each arm."""
    arms = result["arms"]
    rows = [
        [
            "steps that compute the blocks",
            *(f"{one['computed_steps']} of {one['steps']}" for one in arms.values()),
        ],
        ["sampling, times as fast", *(shown(one["times_as_fast"], "ratio") for one in arms.values())],
        [
            "latents' difference, picture and sound",
            *(
                " and ".join(f"{one['latents'][name]:.3f}" for name in ("video", "audio"))
                for one in arms.values()
            ),
        ],
    ]
    for name, found in result["metrics"].items():
        cells = [
            shown(one["mean" if arm == EXACT else "less_exact"], "mean", arm != EXACT)
            for arm, one in found.items()
        ]
        rows.append([f"`{name}`, {EXACT} and differences to it", *cells])
    return markdown_table(["", *arms], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--demo", type=Path, default=Path("out"), help="output of a finished demo")
    parser.add_argument("--work", type=Path, required=True, help="folder that clips and scores are kept in")
    parser.add_argument("--limit", type=int, default=48, help="number of prompts")
    parser.add_argument("--sigma-drop", type=float, nargs="+", default=(0.03, 0.05))
    parser.add_argument("--steps", type=int, nargs="*", default=(9, 7), help="samplers of fewer exact steps")
    parser.add_argument("--clips", type=int, default=8, help="of the batch whose sampling is timed")
    parser.add_argument("--repeats", type=int, default=5, help="turns of the speed of sampling")
    options = parse(parser)
    options.work.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe("mini", Path("params.yaml") if Path("params.yaml").is_file() else None, ())
    arms = arms_of(recipe.generate, options.sigma_drop, options.steps)
    place = DemoOutput(options.demo.resolve(), options.work)
    threads = torch.get_num_threads()
    result = measure(place, arms, options.limit, options.clips, options.repeats)
    torch.set_num_threads(threads)
    write({**facts("pocketsphinx"), **result}, options.out)
    print(table(result))


if __name__ == "__main__":
    main()

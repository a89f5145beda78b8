"""A mini held in 8 or 4 bits against the plain one: generation, and alignment on a quantised base.

    python -m experiments.benchmarks.quantised --demo out --work /tmp/quantised --out docs/quantised.json
    ... --aligned int8=OUT      # and alignment

--demo: a finished demo's output. Of the first --limit held-out prompts of alignment it makes clips by the
pretrained model plain and with `generate.quantisation` of each kind, and by the aligned model; --aligned
KIND=OUT: output of the same demo's alignment with `--set align.lora.base=KIND`, whose merged adapter makes
clips in the plain one's precision. Judges are no part of alignment's rubric. Differences are paired by
prompt; intervals are 95 %, by bootstrap over prompts. --work keeps clips and scores: a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.benchmarks.best_of import JUDGES, DemoOutput, scores_of
from experiments.benchmarks.harness import facts, make_parser, parse, shown, write
from experiments.recipes.load import load_recipe
from experiments.scoring.statistics import Interval, bootstrap_mean
from pretrain.generate import generate
from pretrain.generation.clip_folder import INDEX
from pretrain.generation.held import weight_bytes
from pretrain.markdown import markdown_table
from pretrain.model.checkpoint import read_model_folder
from pretrain.model.quantised import QUANTISATIONS

PLAIN, ALIGNED = "plain", "aligned"
METRICS = (*JUDGES, "sim_resemblyzer")


def measure(place: DemoOutput, aligned: Mapping[str, Path], limit: int) -> dict[str, Any]:
    """Makes and scores what is missing; `{generation: {metric: {kind: interval, ...}}, alignment: ...}`."""
    recipe = load_recipe("mini", Path("params.yaml") if Path("params.yaml").is_file() else None, ())
    prompts = place.demo / "corpus" / "prompts" / "align_held_out.jsonl"
    model, after = (place.demo / part / "model" for part in ("pretrain/stage3", "align"))
    arms = {PLAIN: (recipe.generate, model), ALIGNED: (recipe.generate, after)}
    arms |= {kind: (replace(recipe.generate, quantisation=kind), model) for kind in QUANTISATIONS}
    arms |= {f"{ALIGNED} on {kind}": (recipe.generate, out / "align/model") for kind, out in aligned.items()}
    columns = {}
    for name, (config, weights) in arms.items():
        out = place.work / name.replace(" ", "_")
        generate(config, weights, place.codec, prompts, out, limit)
        columns[name] = scores_of(out / INDEX, METRICS, place.judges(), place.work / f"{out.name}.jsonl")
    args = read_model_folder(model).args
    held = {kind: weight_bytes(args, arms[kind][0]) for kind in (PLAIN, *QUANTISATIONS)}
    return {
        "prompts": len(columns[PLAIN][METRICS[0]]),
        "bytes_of_bf16": {kind: round(size / held[PLAIN], 3) for kind, size in held.items()},
        "generation": _compared(columns, PLAIN, QUANTISATIONS),
        "alignment": _compared(columns, ALIGNED, [f"{ALIGNED} on {kind}" for kind in aligned], PLAIN),
    }


def _compared(
    columns: Mapping[str, Mapping[str, Mapping[str, float]]], base: str, others: Any, before: str = ""
) -> dict[str, dict[str, Any]]:
    """Metric -> mean of each arm, and each other arm less `base`, paired by clip."""
    found: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        names = list(columns[base][metric])
        values = {
            arm: [columns[arm][metric][name] for name in names]
            for arm in (*([before] if before else []), base, *others)
        }
        intervals: dict[str, Interval] = {arm: bootstrap_mean(values[arm]) for arm in values}
        for other in others:
            pairs = zip(values[other], values[base], strict=True)
            intervals[f"{other} - {base}"] = bootstrap_mean([one - two for one, two in pairs])
        found[metric] = {arm: interval.as_json() for arm, interval in intervals.items()}
    return found


def tables(result: Mapping[str, Any]) -> str:
    """Both comparisons as markdown."""
    parts = []
    for part in ("generation", "alignment"):
        heads = list(next(iter(result[part].values())))
        rows = [
            [f"`{name}`", *(shown(found[head]) for head in heads)] for name, found in result[part].items()
        ]
        parts.append(markdown_table([part, *heads], rows))
    return "\n\n".join(parts)


def _named(text: str) -> tuple[str, Path]:
    kind, _, folder = text.partition("=")
    if kind not in QUANTISATIONS or not folder:
        raise ValueError(f"--aligned {text}: expected KIND=FOLDER, KIND one of {', '.join(QUANTISATIONS)}")
    return kind, Path(folder).resolve()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--demo", type=Path, default=Path("out"), help="output of a finished demo")
    parser.add_argument("--aligned", nargs="*", default=[], help="KIND=OUT of alignments on quantised bases")
    parser.add_argument("--work", type=Path, required=True, help="folder that clips and scores are kept in")
    parser.add_argument("--limit", type=int, default=208, help="number of prompts")
    options = parse(parser)
    aligned = dict(map(_named, options.aligned))
    options.work.mkdir(parents=True, exist_ok=True)
    result = measure(DemoOutput(options.demo.resolve(), options.work), aligned, options.limit)
    write({**facts("torch", "pocketsphinx"), **result}, options.out)
    print(tables(result))


if __name__ == "__main__":
    main()

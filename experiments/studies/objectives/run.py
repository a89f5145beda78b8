"""`nava study objectives`: all objectives at one rollout budget, with and without ties and curation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.alignment.inputs import BASE, PROMPTS
from experiments.layout import Layout
from experiments.runs.provenance import md5_of
from experiments.scoring.statistics import Clusters, Draws
from experiments.studies.harness import Run, Study, require, run_each
from experiments.studies.objectives.arms import Arm, budget, plan_arms
from experiments.studies.objectives.config import BASELINE, CHOSEN, NFT, NO_TIES, RANDOM, TIES
from experiments.studies.objectives.material import Material, Sections
from experiments.studies.objectives.one_arm import Aligner
from experiments.studies.objectives.totals import higher_is_better, target_of, units_of, with_totals
from experiments.studies.plot import errorbars, save
from experiments.studies.said import said_by_prompts
from experiments.studies.scores import Scoring, added_metrics
from experiments.studies.tables import Comparison, check_prompts, tables_of, unscored
from pretrain.data.corpus.texts import ALIGN_HELD_OUT
from pretrain.files import read_json
from pretrain.launch.stage_run import model_config
from rewards.catalog import metric
from rewards.metric import Metric

METRICS = (
    "wer_pocketsphinx",
    "intelligibility_pocketsphinx",
    "sim_resemblyzer",
    "sync_mini",
    "wer_pocketsphinx_judge",
    "intelligibility_pocketsphinx_judge",
    "sync_judge",
    "picture_noise_judge",
    "lip_loudness_correlation",
)
COLUMNS = 4
COLOURS = {"better": "#4f7942", "worse": "#c8553d"}  # otherwise grey
ArmResults = Mapping[str, Mapping[str, Any]]  # label of an arm's run -> its result


def study_objectives(sections: Sections, layout: Layout, ranks: int, root: Path = Path()) -> dict[str, Any]:
    """Align, generate, score and write OUT/study/objectives.{json,md,png}; returns the JSON content.

    Arms run one after another. Finished arms are reused and a killed one is resumed if settings and data are
    unchanged. Raises FileNotFoundError or ValueError in one line before anything is aligned, the error of the
    first failed arm after all others, Interrupted on a signal.
    """
    folder, config = layout.out / "study" / "objectives", sections.objectives
    study = Study("objectives", folder, layout, config, sections, _inputs(layout), root)
    material = Material(sections, layout, study.inputs, folder)
    arms = plan_arms(config, sections.align, ranks)
    _check_thirds(material)
    limits = sections.align.guardrails
    scoring = Scoring(metrics_of(sections), layout, config.recognizer_processes, limits=limits)
    aligner = Aligner(study, material, scoring, ranks)
    runs = {arm.label: aligner.run_of(arm) for arm in arms}
    by_label = {arm.label: arm for arm in arms}
    hint = "the other arms are kept: mend it or leave it out (objectives.arms) and start again"
    with study.alone(), study.tracked():
        run_each(study.name, list(runs.values()), lambda run: aligner.run(run, by_label[run.label]), hint)
        results = {label: run.read() for label, run in runs.items()}
        asked = results[BASELINE]["scores"]["data_ids"]
        said = said_by_prompts(layout.prompts / f"{ALIGN_HELD_OUT}.jsonl", asked)
        found = {
            "ranks": ranks,
            "budget_clips": budget(config, sections.align),
            "stored": dict(zip(("prompts", "clips_per_prompt"), material.stored, strict=True)),
            "training_prompts": len(material.rows),
            "third": config.curation.budget(len(material.rows)),
            **tabulate(sections, arms, results, said),
            "runs": {label: _seconds(run, results[label]) for label, run in runs.items()},
        }
        return study.publish(found, draw)


def metrics_of(sections: Sections) -> dict[str, Metric]:
    """The study's own metrics, and those of the rubric, the simulated raters and the recipe.

    The raters' features are `reward` or `reward.part`.
    """
    panel = [feature.name for feature in sections.votes.panel.features]
    names = (*METRICS, *sections.align.rubric.routes(), *panel)
    return {**{name: metric(name) for name in names}, **added_metrics(sections.score)}


def _inputs(layout: Layout) -> dict[str, str]:
    """Digests of the study's inputs. Raises FileNotFoundError with the command to run first."""
    prompts = {name: layout.prompts / name for name in (PROMPTS, f"{ALIGN_HELD_OUT}.jsonl")}
    needed = {layout.model(BASE) / "config.json": "pretrain", layout.codec / "config.json": "codec"}
    needed |= {layout.syncnet / role / "config.json": "syncnet" for role in ("reward", "judge")}
    needed |= dict.fromkeys(prompts.values(), "corpus")
    require({path: f"run `nava demo` (or `nava {verb}`) first" for path, verb in needed.items()}, "file")
    return {
        "model": str(model_config(layout.model(BASE))["checkpoint_id"]),
        "codec": str(read_json(layout.codec / "config.json", "fit the codec again")["codec_id"]),
        **{name: md5_of(path) for name, path in prompts.items()},
        **{f"syncnet_{role}": md5_of(layout.syncnet / role) for role in ("reward", "judge")},
    }


def _check_thirds(material: Material) -> None:
    """Raises ValueError if a third of the prompts does not fill a round."""
    objectives, needed = material.sections.objectives, material.sections.align.phases["nft"].prompts_per_round
    count = objectives.curation.budget(len(material.rows))
    if count < needed and {CHOSEN, RANDOM} & set(objectives.arms):
        raise ValueError(
            f"objectives.curation: {count} of {len(material.rows)} prompts, but a round takes {needed}; "
            "raise curation.share"
        )


def _seconds(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """Wall-clock seconds of a finished arm, including shared preparation."""
    seconds = sum(result["seconds"].values()) + sum(result["cost"].get("before", {}).values())
    return {"folder": run.folder.name, "seconds": round(seconds, 1)}


def tabulate(
    sections: Sections, arms: Sequence[Arm], results: ArmResults, said: Clusters | None = None
) -> dict[str, Any]:
    """`{arms: {arm: {metrics, differences, target, cost, unscored, flagged}}, metrics, ties, curation,
    clips}`.

    differences: the arm minus the pretrained model, over the clips that both could score. flagged: clips
    beyond a guardrail, mean of the seeds. said: what each prompt asks for, which is what is drawn. Raises
    ValueError where arms answered different prompts.
    """
    features = sections.votes.panel.features
    base = results[BASELINE]["scores"]
    check_prompts([results[arm.label]["scores"] for arm in arms], "arms")
    units = units_of(sections.align.rubric, features, base)
    ours: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        ours.setdefault(arm.name, []).append(results[arm.label])
    tables = {
        name: tables_of([with_totals(result["scores"], units) for result in runs])
        for name, runs in ours.items()
    }
    better = {name: higher_is_better(name, features) for name in tables[BASELINE]}
    comparison = Comparison(Draws.crossed, sections.objectives.resamples, better, over_both=True, said=said)
    entries = {}
    for name, runs in ours.items():
        aligned = name != BASELINE
        differences = comparison.differences(tables[name], tables[BASELINE]) if aligned else {}
        entries[name] = {
            "metrics": comparison.means(tables[name]),
            "differences": differences,
            "target": _target(target_of(name), units, differences) if aligned else {},
            "cost": _cost(runs),
            "unscored": unscored(result["scores"] for result in runs),
            "flagged": round(sum(result["scores"]["flagged"] for result in runs) / len(runs), 6),
        }
    metrics = metrics_of(sections)
    rewarded = {*sections.align.rubric.routes(), *(n for n, m in metrics.items() if m.role == "reward")}
    found: dict[str, Any] = {
        "arms": entries,
        "metrics": {
            name: {"higher_is_better": up, "rewarded": name in rewarded} for name, up in better.items()
        },
        "clips": {
            "prompts": len(base["data_ids"]),
            "distinct": len(set(said or base["data_ids"])),
            "seeds": sections.objectives.seeds,
        },
    }
    if TIES in tables and NO_TIES in tables:
        found["ties"] = comparison.differences(tables[TIES], tables[NO_TIES])
    if {NFT, CHOSEN, RANDOM} <= tables.keys():
        whole, base = tables[NFT], tables[BASELINE]
        found["curation"] = {
            "shares": {name: comparison.shares(tables[name], whole, base) for name in (CHOSEN, RANDOM)},
            "differences": comparison.differences(tables[CHOSEN], tables[RANDOM]),
        }
    return found


def _target(
    total: str, units: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Any]
) -> dict[str, Any]:
    """Results of an arm on its own target: the total and each metric."""
    outcomes = {name: differences[name]["verdict"] for name in units[total]}
    return {
        "total": total,
        "verdict": differences[total]["verdict"],
        "improved": [name for name, outcome in outcomes.items() if outcome == "better"],
        "worsened": [name for name, outcome in outcomes.items() if outcome == "worse"],
    }


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds.

    `total`: preparation plus the whole alignment including startup and saving; `judging` is separate.
    """
    rows = []
    for result in results:
        cost, seconds = result["cost"], result["seconds"]
        before, rounds = cost.get("before", {}), cost.get("rounds", {})
        parts = {name: rounds.get(name, 0.0) + before.get(name, 0.0) for name in ("rollout", "score")}
        row = {**parts, "update": rounds.get("update", 0.0), "pilot": before.get("pilot", 0.0)}
        total = seconds.get("align", 0.0) + sum(before.values())
        other = max(0.0, total - sum(row.values()))
        rows.append({**row, "other": other, "total": total, "judging": seconds["judge"]})
    mean = {name: round(sum(row[name] for row in rows) / len(rows), 1) for name in rows[0]}
    facts = ("clips", "optimizer_steps", "clips_per_step", "pairs")
    return {**mean, **{name: results[0]["cost"][name] for name in facts if name in results[0]["cost"]}}


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Plot every metric's difference to the pretrained model by arm.

    Green: better, red: worse, grey: the 95 % interval includes 0.
    """
    arms = [name for name in study["arms"] if name != BASELINE]
    rows = -(-len(study["metrics"]) // COLUMNS)
    figure = Figure(figsize=(13, rows * (0.7 + 0.26 * len(arms))), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flatten()
    for axes, (name, facts) in zip(panels, study["metrics"].items(), strict=False):
        for place, arm in enumerate(arms):
            found = study["arms"][arm]["differences"][name]
            style = {"color": COLOURS.get(found["verdict"], "#888888"), "markersize": 4}
            errorbars(axes, [(place, found)], style, horizontal=True)
        axes.axvline(0.0, color="#333333", linewidth=0.8)
        axes.set_title(f"{name} ({'up' if facts['higher_is_better'] else 'down'})", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3, axis="x")
    for axes in panels[len(study["metrics"]) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    save(figure, path)

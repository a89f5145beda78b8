"""`nava study objectives` as a whole, with stand-ins for all heavy work: its answers, and that what is
finished is kept."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.layout import Layout
from experiments.pipeline.curate_prompts import prompt_gains
from experiments.pipeline.votes import VotesConfig
from experiments.runs.run import Interrupted
from experiments.studies.objectives.config import ObjectivesConfig
from experiments.studies.objectives.material import Sections
from experiments.studies.objectives.run import study_objectives
from finetune.gsb.pairs import ClipRef, PreferencePair, read_pairs, write_pairs
from finetune.make_rollouts import RolloutsConfig
from finetune.recipe import AlignConfig, StopConfig
from pretrain.generation.config import GenerateConfig
from pretrain.launch.launch import StageResult
from pretrain.prompt import read_prompts

WORDS = ("one", "two", "three", "four", "five", "six")
ALIGN = AlignConfig()
SMALL = replace(
    ALIGN,
    stop=StopConfig(prompts=4),
    phases={
        **ALIGN.phases,
        "nft": replace(
            ALIGN.phases["nft"], prompts_per_round=4, clips_per_prompt=4, steps_per_epoch=2, epochs=2
        ),
    },
)


def pair(number: int, **counts: tuple[int, int, int]) -> PreferencePair:
    first, second = (
        ClipRef(f"p{number}-k{k}", f"m#{k}", f"p{number}", "<S>one<E>", None, "0" * 64) for k in (0, 1)
    )
    return PreferencePair(f"p{number}", first, second, counts, True)


class World:
    """Stand-ins of all heavy work: who was called, and an arm `breaks` or is `stopped` by its name."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.calls, self.breaks, self.stopped = layout, [], "", ""
        self.gain = {
            "nft-": 0.4,
            "nft_chosen": 0.3,
            "nft_random": 0.1,
            "gsb_dpo-": 0.2,
            "gsb_dpo_no_ties": 0.1,
        }

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        places = {
            "material": {"make_rollouts": "roll_out", "vote_on_rollouts": "vote", "store_gains": "gains"},
            "one_arm": {"align_model": "align", "generate": "generate", "score_clips": "score"},
        }
        places["material"]["open_store"] = "open_store"
        for module, names in places.items():
            for name, ours in names.items():
                where = f"experiments.studies.objectives.{module}.{name}"
                monkeypatch.setattr(
                    where, lambda *given, ours=ours, **named: getattr(self, ours)(*given, **named)
                )

    def open_store(self, store):
        return store

    def roll_out(self, config, sizes, base, codec, prompts, out):
        out.mkdir(parents=True)
        self.calls.append(("roll_out", len(read_prompts(prompts)) * config.clips_per_prompt))
        return {}

    def vote(self, config, store, codec, corpus, syncnet, out):
        self.calls.append(("vote", config.pairs_per_case))
        write_pairs(
            out / "pairs.jsonl", [pair(i, overall=(3, 0, 0) if i % 2 else (0, 3, 0)) for i in range(40)]
        )
        return {"simulated": True}

    def gains(self, align, store, codec, corpus, syncnet, batch, processes):
        rows = read_prompts(store.parents[1] / "prompts" / "all.jsonl")
        groups = [row.data_id for row in rows for _ in range(2)]
        told = {row.data_id: float(int(row.data_id[1:]) >= 20) for row in rows}
        values = np.array([-told[name] for name in groups])
        weights = align.rubric.weights()
        return prompt_gains(dict.fromkeys(weights, values), groups, weights), {}

    def align(self, run, ranks):
        label = run.out.parent.name
        self.calls.append(
            (
                "align",
                label.rpartition("-")[0],
                [row.data_id for row in read_prompts(run.prompts)],
                run.pairs,
                run.config,
            )
        )
        if self.breaks and label.startswith(self.breaks):
            raise ValueError("5 steps in a row had a gradient of norm nan")
        if self.stopped and label.startswith(self.stopped):
            return StageResult("interrupted", 1, None, "")
        write_model(run.out / "model", label)
        rows = [
            {
                "step": i,
                "seconds/rollout": 1.0,
                "seconds/score": 2.0,
                "seconds/update": 3.0,
                "seconds_per_step": 7.0,
            }
            for i in (1, 2)
        ]
        (run.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return StageResult("finished", 2, run.out / "model", label)

    def generate(self, config, model, codec, prompts, out, limit, aside):
        out.mkdir(parents=True, exist_ok=True)
        (out / "made_by").write_text(json.loads((model / "config.json").read_text())["checkpoint_id"])
        self.calls.append(("generate", limit))
        return {}

    def score(self, clips, scoring, out):
        by = (clips / "made_by").read_text()
        gain = next((gain for name, gain in self.gain.items() if by.startswith(name)), 0.0)
        self.calls.append(("score", by))
        moved = {name: -gain if "noise" in name or "wer" in name else gain for name in scoring.metrics}
        metrics = {name: [[base + moved[name], 1.0] for base in (0.5, 1.0, 1.5)] for name in moved}
        reasons = {"sync_judge": ["", "", "no face"]}
        found = {"data_ids": ["a", "b", "c"], "metrics": metrics, "reasons": reasons}
        out.write_text(json.dumps({**found, "flagged": 2 * by.startswith("nft-seed1")}))

    def aligned(self) -> list[str]:
        return [call[1] for call in self.calls if call[0] == "align"]


def write_model(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"checkpoint_id": name, "flavor": "debug", "args": {}}))


@pytest.fixture
def world(tmp_path, monkeypatch, request) -> World:
    monkeypatch.setattr("experiments.studies.harness.ensure_sender", lambda spool, root: None)
    if request.node.name != "test_the_whole_study_answers_its_questions":  # a picture takes a second
        monkeypatch.setattr("experiments.studies.objectives.run.draw", lambda study, path: None)
    layout = Layout(out=tmp_path / "out")
    write_model(layout.model("stage3"), "base")
    for folder, content in (
        (layout.codec, {"codec_id": "c"}),
        *((layout.syncnet / role, {"a": role}) for role in ("reward", "judge")),
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(content))
    layout.prompts.mkdir(parents=True)
    for name in ("align_train", "align_held_out"):
        rows = [
            {"prompt": f"<S>{WORDS[i % 6]} {WORDS[i // 6]}<E>", "data_id": f"p{i}", "num_frames": 25}
            for i in range(34)
        ]
        (layout.prompts / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = World(layout)
    world.stand_in(monkeypatch)
    return world


def sections(align: AlignConfig = SMALL, **changes) -> Sections:
    return Sections(
        ObjectivesConfig(rounds=2, resamples=200, **{"seeds": 1, **changes}),
        align,
        GenerateConfig(),
        RolloutsConfig(),
        VotesConfig(),
    )


def run(world: World, given: Sections) -> dict:
    world.calls.clear()
    return study_objectives(given, world.layout, 1, world.layout.out)


def test_the_whole_study_answers_its_questions(world):
    found = run(world, sections())
    assert [call for call in world.calls if call[0] == "roll_out"] == [
        ("roll_out", 32),
        ("roll_out", 30 * 4),
    ]  # the budget; the pilot
    assert (
        ("vote", 3) in world.calls
        and found["budget_clips"] == 32
        and found["stored"] == {"prompts": 16, "clips_per_prompt": 2}
    )
    aligned = {call[1]: call[2:] for call in world.calls if call[0] == "align"}
    everything = set(aligned["nft-seed0"][0])
    assert len(everything) == 30  # four are held out by the recipe
    chosen, random = (set(aligned[f"nft_{name}_third-seed0"][0]) for name in ("chosen", "random"))
    assert (
        len(chosen) == len(random) == 10 and chosen < everything and random < everything and chosen != random
    )
    assert len([name for name in chosen if int(name[1:]) >= 20]) > len(
        [name for name in random if int(name[1:]) >= 20]
    )
    with_ties, without = (read_pairs(aligned[f"gsb_dpo{name}-seed0"][1]) for name in ("", "_no_ties"))
    assert len(with_ties) == 40 and len(without) == 20 and all(pair.label("overall") for pair in without)
    entry = found["arms"]["nft"]
    assert (
        entry["cost"] | {"rollout": 2.0, "score": 4.0, "update": 6.0, "clips": 32, "optimizer_steps": 8}
        == entry["cost"]
    )
    assert (
        entry["differences"]["sync_judge"]["mean"] == pytest.approx(0.4)
        and entry["target"]["verdict"] == "better"
    )
    assert (
        set(entry["target"]["improved"]) == set(SMALL.rubric.routes())
        and found["arms"]["rwr"]["target"]["verdict"] == "not told apart"
    )
    assert found["ties"]["panel"]["verdict"] == "better"
    assert found["curation"]["shares"]["nft_chosen_third"]["sync_judge"]["mean"] == pytest.approx(0.75)
    assert found["curation"]["differences"]["wer_pocketsphinx_judge"]["verdict"] == "better"
    text = (world.layout.out / "study" / "objectives.md").read_text()
    assert (
        "**Yes**: `gsb_dpo` minus `gsb_dpo_no_ties`" in text
        and "75 % [75, 75]" in text
        and "no face: 1" in text
    )
    assert "8 x 8 (40 pairs)" in text and "- **rwr** own target not told apart" in text
    assert json.loads((world.layout.out / "study" / "objectives.json").read_text())["ties"] == found["ties"]
    assert (world.layout.out / "study" / "objectives.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_are_tracked_below_the_study(world):
    run(world, sections(arms=("pretrained", "nft")))
    starts = [
        json.loads(path.read_text().splitlines()[0])
        for path in sorted(world.layout.tracking.glob("*/events.jsonl"))
    ]
    ends = [
        json.loads(path.read_text().splitlines()[-1])["status"]
        for path in world.layout.tracking.glob("*/events.jsonl")
    ]
    # the study's own name says when it began
    names = {start["name"].partition(" 20")[0]: start["parents"] for start in starts}
    assert (
        set(names) == {"study objectives", "study objectives pretrained", "study objectives nft-seed0"}
        and ends == ["FINISHED"] * 3
    )
    assert (
        names["study objectives"] == {}
        and names["study objectives nft-seed0"] == names["study objectives pretrained"] != {}
    )


def test_finished_arms_are_kept_until_what_they_depend_on_changes(world):
    given = sections(arms=("pretrained", "nft", "rwr", "gsb_dpo"))
    first = run(world, given)
    assert run(world, given) == first and world.calls == []
    faster = replace(given, align=SMALL.with_phase("rwr", lr=1e-5))
    run(world, faster)
    assert world.aligned() == ["rwr-seed0"] and [
        call[1][:3] for call in world.calls if call[0] == "score"
    ] == ["rwr"]
    again = replace(given, generate=replace(given.generate, seed=3))
    run(world, again)
    assert (
        world.aligned() == ["nft-seed0", "rwr-seed0", "gsb_dpo-seed0"] and ("vote", 3) not in world.calls
    )  # asked, and answered at once
    assert len([call for call in world.calls if call[0] == "score"]) == 4
    more = replace(given, objectives=replace(given.objectives, seeds=2))
    flagged = {name: arm["flagged"] for name, arm in run(world, more)["arms"].items()}
    assert flagged == {"pretrained": 0, "nft": 1, "rwr": 0, "gsb_dpo": 0}  # of a seed
    page = (world.layout.out / "study" / "objectives.md").read_text()
    assert page.count("; of 3 clips 1 are beyond a guardrail, mean of the seeds, of the pretrained") == 1
    assert world.aligned() == ["nft-seed1", "rwr-seed1", "gsb_dpo-seed1"] and ("vote", 3) not in world.calls
    others = replace(given, votes=replace(given.votes, panel=replace(given.votes.panel, seed=7)))
    run(world, others)
    assert world.aligned() == ["gsb_dpo-seed0"] and ("vote", 3) in world.calls
    (world.layout.syncnet / "judge" / "config.json").write_text("{}")
    run(world, replace(given, objectives=replace(given.objectives, arms=("pretrained", "nft", "gsb_dpo"))))
    assert ("vote", 3) in world.calls and len([call for call in world.calls if call[0] == "score"]) == 3


def test_a_failed_arm_is_named_when_the_others_are_done(world):
    given, world.breaks = sections(arms=("pretrained", "rwr", "nft")), "rwr"
    with pytest.raises(
        ValueError, match=r"^rwr-seed0: 5 steps in a row .*; the other arms are kept: .* leave it out"
    ):
        run(world, given)
    assert (
        world.aligned() == ["rwr-seed0", "nft-seed0"]
        and not (world.layout.out / "study" / "objectives.json").exists()
    )
    world.breaks = ""
    run(world, given)
    assert world.aligned() == ["rwr-seed0"]


def test_a_stopped_arm_ends_the_study_with_its_own_line_and_goes_on(world):
    given, world.stopped = sections(arms=("pretrained", "rwr", "nft")), "rwr"
    with pytest.raises(Interrupted, match=r"rwr-seed0 stopped after round 1 .* goes on from there"):
        run(world, given)
    assert world.aligned() == ["rwr-seed0"]
    world.stopped = ""
    run(world, given)
    assert world.aligned() == ["rwr-seed0", "nft-seed0"]


def test_wrong_input_is_one_line_before_anything_is_aligned(world):
    with pytest.raises(ValueError, match=r"10 of 30 prompts, but a round takes 12; raise curation.share"):
        run(world, sections(SMALL.with_phase("nft", prompts_per_round=12)))
    (world.layout.syncnet / "judge" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"judge/config\.json: no such file; run `nava demo`"):
        run(world, sections())
    assert world.calls == [] and not (world.layout.out / "study").exists()


def test_arms_of_other_prompts_are_refused(world):
    score = world.score

    def other(clips, *rest):
        score(clips, *rest)
        if (clips / "made_by").read_text() == "base":
            found = json.loads(rest[-1].read_text())
            rest[-1].write_text(json.dumps({**found, "data_ids": ["x", "y", "z"]}))

    world.score = other
    with pytest.raises(ValueError, match="different prompts"):
        run(world, sections(arms=("pretrained", "nft")))


def test_the_recipe_has_the_section_by_its_name():
    from experiments.recipes.load import load_recipe

    changed = load_recipe(
        "mini", None, ["objectives.rounds=2", "objectives.arms=[pretrained, rwr]"]
    ).objectives
    assert changed == dataclasses.replace(ObjectivesConfig(), rounds=2, arms=("pretrained", "rwr"))

"""`nava study objectives`: equal budgets, the choice of pairs and prompts, its statistics by hand, and that what is finished is kept."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.layout import Layout
from experiments.objectives_study.arms import budget, optimizer_steps, plan_arms, store_sizes, votes_phase
from experiments.objectives_study.config import ARMS, ObjectivesConfig
from experiments.objectives_study.material import Sections, gains_of, is_decided, write_prompts
from experiments.objectives_study.one_arm import rounds_cost
from experiments.objectives_study.run import study_objectives
from experiments.objectives_study.runners import Runners
from experiments.objectives_study.scores import tabulated
from experiments.objectives_study.statistics import crossed_draws, decided, difference, share_of_gain
from experiments.objectives_study.totals import target_of, units_of, with_totals
from experiments.panel import JUDGES, JudgeFeature, PanelConfig
from experiments.runs import Interrupted
from experiments.study.statistics import Table, mean_over_seeds
from experiments.votes import VotesConfig
from finetune.gsb.pairs import ClipRef, PreferencePair, read_pairs, write_pairs
from finetune.make_rollouts import RolloutsConfig
from finetune.recipe import AlignConfig, RubricConfig, StopConfig
from pretrain.generate import GenerateConfig
from pretrain.launch import StageResult
from pretrain.prompt import read_prompts
from rewards.types import Score

WORDS = ("one", "two", "three", "four", "five", "six")
ALIGN = AlignConfig()
SMALL = replace(
    ALIGN, stop=StopConfig(prompts=4), nft=replace(ALIGN.nft, prompts_per_round=4, clips_per_prompt=4, steps_per_epoch=2, epochs=2)
)  # fmt: skip


def table(*rows: list[float]) -> Table:
    return Table.of([[None if value != value else (value, 1.0) for value in row] for row in rows])


def pair(number: int, **counts: tuple[int, int, int]) -> PreferencePair:
    first, second = (ClipRef(f"p{number}-k{k}", f"m#{k}", f"p{number}", "<S>one<E>", None, "0" * 64) for k in (0, 1))
    return PreferencePair(f"p{number}", first, second, counts, True)


# budgets


def test_every_arm_rolls_out_as_many_clips_and_votes_take_nfts_steps():
    config = ObjectivesConfig(rounds=6, seeds=2)
    arms = plan_arms(config, ALIGN, 2)
    assert [arm.label for arm in arms[:3]] == ["pretrained", "nft-seed0", "rwr-seed0"] and len(arms) == 1 + 2 * (len(ARMS) - 1)
    assert budget(config, ALIGN) == 6 * 24 * 8
    phases = {arm.name: arm.phase for arm in arms[1:]}
    for name in ("nft", "rwr", "grpo", "nft_chosen_third", "nft_random_third"):
        assert phases[name].rounds * phases[name].prompts_per_round * phases[name].clips_per_prompt == 1152
    count, clips = store_sizes(1152, 104)
    assert (count, clips) == (96, 12)
    assert optimizer_steps(phases["nft"]) == optimizer_steps(phases["gsb_dpo"]) == optimizer_steps(phases["gsb_dpo_no_ties"]) == (96, 48)
    ties, dropped = (next(arm.config for arm in arms if arm.name == name) for name in ("gsb_dpo", "gsb_dpo_no_ties"))
    assert ties and dropped and (ties.gsb_dpo.objective.ties, dropped.gsb_dpo.objective.ties) == ("model", "drop")
    assert replace(dropped, gsb_dpo=replace(dropped.gsb_dpo, objective=ties.gsb_dpo.objective)) == ties
    assert all(arm.config.stop.prompts == arm.config.stop.patience == 0 for arm in arms[1:] if arm.config)
    assert {arm.config.seed for arm in arms[1:] if arm.config} == {0, 1}


def test_another_recipes_groups_are_held_equal_too():
    uneven = replace(ALIGN, rwr=replace(ALIGN.rwr, prompts_per_round=6, rounds=99), grpo=replace(ALIGN.grpo, clips_per_prompt=16))
    arms = {arm.name: arm for arm in plan_arms(ObjectivesConfig(rounds=3), uneven, 2)}
    assert {(arms[name].phase.rounds, arms[name].phase.prompts_per_round, arms[name].phase.clips_per_prompt)
            for name in ("nft", "rwr", "grpo")} == {(3, 24, 8)}  # fmt: skip


@given(st.integers(1, 12), st.integers(2, 30), st.integers(2, 16), st.integers(0, 80))
def test_a_store_has_the_budget_exactly(rounds, prompts_per_round, clips, more):
    total, available = rounds * prompts_per_round * clips, prompts_per_round + more
    count, each = store_sizes(total, available)
    assert count * each == total and each >= 2 and prompts_per_round <= count <= available


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(8, 400))
def test_pairs_divide_over_steps_and_ranks_and_are_never_more_than_there_are(ranks, pairs):
    phase = votes_phase(ALIGN, 6, ranks, pairs)
    assert phase.pairs_per_round % (phase.steps_per_epoch * ranks) == 0
    assert phase.pairs_per_round <= max(96, ranks * 4) and (phase.pairs_per_round <= pairs or pairs < 4 * ranks)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ("pretrained", "nfd")}, "did you mean 'nft'"),
        ({"arms": ("nft",)}, "pretrained and at least one more"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"pilot_clips": 1}, "pilot_clips from 2"),
    ],
)
def test_impossible_sizes_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        ObjectivesConfig(**changes)


# pairs and prompts


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"overall": (2, 0, 1)}, True),
        ({"overall": (0, 3, 0)}, False),
        ({"overall": (1, 0, 1), "picture": (0, 0, 3)}, True),
        ({"overall": (1, 1, 1), "voice": (0, 2, 1), "picture": (1, 1, 0)}, False),
        ({"overall": (0, 3, 0), "sync": (3, 0, 0)}, False),  # overall was asked first: sync is not what the sum learns from
        ({"sync": (3, 0, 0)}, True),
    ],
)
def test_a_pair_goes_where_no_question_that_is_learned_from_has_a_winner(counts, kept):
    assert is_decided(pair(0, **counts)) is kept


def test_gains_are_spreads_in_units_of_each_reward():
    groups = ["a", "a", "b", "b", "c", "c"]
    values = {"x": np.array([0.0, 2.0, 1.0, 1.0, math.nan, 1.0]), "flat": np.full(6, 3.0), "none": np.full(6, math.nan)}
    found = gains_of(values, groups, {"x": 0.5, "flat": 1.0, "none": 1.0})
    assert found["a"] == pytest.approx(1.0 / np.nanstd(values["x"])) and found["b"] == 0 and math.isnan(found["c"])
    rescaled = gains_of({"x": 10 * values["x"]}, groups, {"x": 2.0})
    assert rescaled["a"] == pytest.approx(found["a"])


def test_weights_of_the_rubric_weigh_the_gains():
    groups = ["a", "a", "b", "b"]
    values = {"x": np.array([-1.0, 1.0, 0.0, 0.0]), "y": np.array([0.0, 0.0, -3.0, 3.0])}
    found = gains_of(values, groups, {"x": 3.0, "y": 1.0})
    assert found["a"] == pytest.approx(3 * found["b"])


def test_chosen_prompts_keep_their_order_ids_and_files(tmp_path):
    source, out = tmp_path / "a" / "p.jsonl", tmp_path / "b" / "c" / "q.jsonl"
    rows = [{"prompt": f"<S>{word}<E>", "spk_wavs": ["../v.wav", None][:1]} for word in WORDS]
    source.parent.mkdir()
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_prompts(source, {"p-00005", "p-00002"}, out)
    found = read_prompts(out)
    assert [row.data_id for row in found] == ["p-00002", "p-00005"]
    path = found[0].reference_paths[0]
    assert path is not None and path.resolve() == (tmp_path / "v.wav").resolve() and str(tmp_path) not in out.read_text()


# statistics


def test_differences_are_over_clips_that_both_could_score():
    nan = math.nan
    ours, base = table([1.0, nan, 3.0, 5.0]), table([0.0, 9.0, nan, 4.0])
    found = difference(ours, base, 200)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0)) and found.n == 2


def test_one_pretrained_model_stands_for_every_seed():
    base = table([0.0, 1.0, 2.0])
    found = difference(table([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]), base, 500)
    assert found.n == 6 and (found.mean, found.low, found.high) == pytest.approx((2.0, 1.0, 3.0))  # the seeds differ, prompts do not


def test_what_is_hard_about_a_prompt_does_not_average_out_over_seeds():
    row = [0.0, 1.0] * 20
    one, four = table(row), table(*[row] * 4)
    narrow, wide = (mean_over_seeds(found, crossed_draws(found, 4000)) for found in (one, four))
    assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.1)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(40), rel=0.15)


def test_shares_of_a_gain_are_exact_where_every_prompt_gains_alike():
    base = table([0.1, 0.5, 0.9])
    whole, part = (table([value + gain for value in (0.1, 0.5, 0.9)]) for gain in (0.4, 0.1))
    found = share_of_gain(part, whole, base, 200)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    lower_part, lower_whole, lower_base = (table([-value for value in row.above[0].tolist()]) for row in (part, whole, base))
    assert share_of_gain(lower_part, lower_whole, lower_base, 200).mean == pytest.approx(0.25)  # the same where lower is better


def test_a_share_of_what_may_be_nothing_is_no_number():
    base, noise = table([0.0] * 10), table([1.0, -1.0] * 5)
    assert math.isnan(share_of_gain(noise, noise, base, 200).mean)
    assert not decided(difference(noise, base, 200)) and decided(difference(table([1.0] * 10), base, 200))


def test_totals_count_rewards_in_deviations_and_judges_in_the_panels_units():
    rubric = RubricConfig(audio={"up": 3.0}, sync={"wer_pocketsphinx": 1.0})
    features = (JudgeFeature("sync_judge", "sync", 0.5), JudgeFeature("picture_noise_judge", "picture", -0.25, 3.0))
    base = {"metrics": {"up": [[1, 1], [3, 1]], "wer_pocketsphinx": [[0, 2], [2, 2]], "sync_judge": [[1, 1]] * 2,
                        "picture_noise_judge": [[2, 1]] * 2}}  # fmt: skip
    units = units_of(rubric, features, base)
    ours = {"metrics": {"up": [[3, 1], None], "wer_pocketsphinx": [[0, 2], [0, 2]], "sync_judge": [[1.5, 1], [1, 1]],
                        "picture_noise_judge": [[2, 1], [1.5, 1]]}}  # fmt: skip
    found = with_totals(ours, units)
    assert found["rubric"] == [[pytest.approx((3 * 1 + 1 * 1) / 4), 1.0], None]
    assert [value for value, _ in found["panel"]] == pytest.approx([1 / 4, 3 * 2 / 4])
    before = with_totals(base, units)["rubric"]
    assert sum(value for value, _ in before) == pytest.approx(0.0)
    assert (target_of("gsb_dpo_no_ties"), target_of("nft_random_third")) == ("panel", "rubric")


def test_scores_become_pairs_and_unscored_clips_none():
    scores = {"wer_pocketsphinx": [Score(0.5, parts={"errors": 1, "words": 2}), Score(math.nan, "silent")]}
    scores["sync_judge"] = [Score(0.3, parts={"rho": 0.1}), Score(0.2, parts={"rho": 0.4})]
    found = tabulated(["wer_pocketsphinx", "sync_judge", "sync_judge.rho"], scores)
    assert found["metrics"]["wer_pocketsphinx"] == [[1, 2], None] and found["metrics"]["sync_judge.rho"] == [[0.1, 1.0], [0.4, 1.0]]
    assert found["reasons"]["wer_pocketsphinx"] == ["", "silent"]


def test_seconds_of_rounds_that_are_not_in_the_log_are_the_mean(tmp_path):
    rows = [{"seconds/rollout": 4.0, "seconds/score": 2.0, "seconds/update": value, "seconds_per_step": 10.0} for value in (1.0, 3.0)]
    (tmp_path / "m").write_text("".join(json.dumps({"step": 1, **row}) + "\n" for row in [{"aside_total": 0.0}, *rows]))
    assert rounds_cost(tmp_path / "m", 4) == {"rollout": 16.0, "score": 8.0, "update": 8.0, "other": 8.0}


# the whole, with stand-ins


class World:
    """Stand-ins of all heavy work: who was called, and an arm `breaks` or is `stopped` by its name."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.calls, self.breaks, self.stopped = layout, [], "", ""
        self.gain = {"nft-": 0.4, "nft_chosen": 0.3, "nft_random": 0.1, "gsb_dpo-": 0.2, "gsb_dpo_no_ties": 0.1}

    def runners(self) -> Runners:
        return Runners(self.roll_out, self.vote, self.reward, self.align, self.generate, self.score)

    def roll_out(self, config, sizes, base, codec, prompts, out):
        out.mkdir(parents=True)
        self.calls.append(("roll_out", len(read_prompts(prompts)) * config.clips_per_prompt))
        return {}

    def vote(self, config, store, codec, corpus, syncnet, out):
        self.calls.append(("vote", config.pairs_per_case))
        write_pairs(out / "pairs.jsonl", [pair(i, overall=(3, 0, 0) if i % 2 else (0, 3, 0)) for i in range(40)])
        return {"simulated": True}

    def reward(self, align, layout, store, prompts):
        rows = read_prompts(prompts)
        groups = [row.data_id for row in rows for _ in range(2)]
        told = {row.data_id: float(int(row.data_id[1:]) >= 20) for row in rows}
        return groups, {"sync_mini": np.array([sign * told[name] for name, sign in zip(groups, [-1, 1] * len(rows), strict=True)])}

    def align(self, run, ranks):
        label = run.out.parent.name
        self.calls.append(("align", label.rpartition("-")[0], [row.data_id for row in read_prompts(run.prompts)], run.pairs, run.config))
        if self.breaks and label.startswith(self.breaks):
            raise ValueError("5 steps in a row had a gradient of norm nan")
        if self.stopped and label.startswith(self.stopped):
            return StageResult("interrupted", 1, None, "")
        write_model(run.out / "model", label)
        rows = [{"step": i, "seconds/rollout": 1.0, "seconds/score": 2.0, "seconds/update": 3.0, "seconds_per_step": 7.0} for i in (1, 2)]
        (run.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return StageResult("finished", 2, run.out / "model", label)

    def generate(self, config, model, codec, prompts, out, limit):
        out.mkdir(parents=True, exist_ok=True)
        (out / "made_by").write_text(json.loads((model / "config.json").read_text())["checkpoint_id"])
        self.calls.append(("generate", limit))
        return {}

    def score(self, clips, names, layout, limits, processes, out):
        by = (clips / "made_by").read_text()
        gain = next((gain for name, gain in self.gain.items() if by.startswith(name)), 0.0)
        self.calls.append(("score", by))
        moved = {name: -gain if "noise" in name or "wer" in name else gain for name in names}
        metrics = {name: [[base + moved[name], 1.0] for base in (0.5, 1.0, 1.5)] for name in names}
        reasons = {"sync_judge": ["", "", "no face"]}
        out.write_text(json.dumps({"data_ids": ["a", "b", "c"], "metrics": metrics, "reasons": reasons, "flagged": 0}))

    def aligned(self) -> list[str]:
        return [call[1] for call in self.calls if call[0] == "align"]


def write_model(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"checkpoint_id": name, "flavor": "debug", "args": {}}))


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr("experiments.objectives_study.run.ensure_sender", lambda spool, root: None)
    layout = Layout(out=tmp_path / "out")
    write_model(layout.model("stage3"), "base")
    for folder, content in ((layout.codec, {"codec_id": "c"}), *((layout.syncnet / role, {"a": role}) for role in ("reward", "judge"))):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(content))
    layout.prompts.mkdir(parents=True)
    for name in ("align_train", "align_held_out"):
        rows = [{"prompt": f"<S>{WORDS[i % 6]} {WORDS[i // 6]}<E>", "data_id": f"p{i}", "num_frames": 25} for i in range(34)]
        (layout.prompts / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(layout)


def sections(align: AlignConfig = SMALL, **changes) -> Sections:
    votes = VotesConfig(panel=PanelConfig(features=tuple(feature for feature in JUDGES if feature.name != "sim_resemblyzer")))
    return Sections(ObjectivesConfig(rounds=2, resamples=200, **changes), align, GenerateConfig(), RolloutsConfig(), votes)


def run(world: World, given: Sections) -> dict:
    world.calls.clear()
    return study_objectives(given, world.layout, 1, world.layout.out, world.runners())


def test_the_whole_study_answers_its_questions(world):
    found = run(world, sections())
    assert [call for call in world.calls if call[0] == "roll_out"] == [("roll_out", 32), ("roll_out", 30 * 4)]  # the budget; the pilot
    assert ("vote", 3) in world.calls and found["budget_clips"] == 32 and found["stored"] == {"prompts": 16, "clips_per_prompt": 2}
    aligned = {call[1]: call[2:] for call in world.calls if call[0] == "align"}
    everything = set(aligned["nft-seed0"][0])
    assert len(everything) == 30  # four are set aside by the recipe
    chosen, random = (set(aligned[f"nft_{name}_third-seed0"][0]) for name in ("chosen", "random"))
    assert len(chosen) == len(random) == 10 and chosen < everything and random < everything and chosen != random
    assert len([name for name in chosen if int(name[1:]) >= 20]) > len([name for name in random if int(name[1:]) >= 20])
    with_ties, without = (read_pairs(aligned[f"gsb_dpo{name}-seed0"][1]) for name in ("", "_no_ties"))
    assert len(with_ties) == 40 and len(without) == 20 and all(pair.label("overall") for pair in without)
    entry = found["arms"]["nft"]
    assert entry["cost"] | {"rollout": 2.0, "score": 4.0, "update": 6.0, "clips": 32, "optimizer_steps": 8} == entry["cost"]
    assert entry["differences"]["sync_judge"]["mean"] == pytest.approx(0.4) and entry["target"]["verdict"] == "better"
    assert set(entry["target"]["improved"]) == set(SMALL.rubric.routes()) and found["arms"]["rwr"]["target"]["verdict"] == "not told apart"
    assert found["ties"]["panel"]["verdict"] == "better"
    assert found["curation"]["shares"]["nft_chosen_third"]["sync_judge"]["mean"] == pytest.approx(0.75)
    assert found["curation"]["differences"]["wer_pocketsphinx_judge"]["verdict"] == "better"
    text = (world.layout.out / "study" / "objectives.md").read_text()
    assert "**Yes**: `gsb_dpo` minus `gsb_dpo_no_ties`" in text and "75 % [75, 75]" in text and "no face: 1" in text
    assert "8 x 8 (40 pairs)" in text and "- **rwr** own target not told apart" in text
    assert json.loads((world.layout.out / "study" / "objectives.json").read_text())["ties"] == found["ties"]
    assert (world.layout.out / "study" / "objectives.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_are_tracked_below_the_study(world):
    run(world, sections(arms=("pretrained", "nft")))
    starts = [json.loads(path.read_text().splitlines()[0]) for path in sorted(world.layout.tracking.glob("*/events.jsonl"))]
    ends = [json.loads(path.read_text().splitlines()[-1])["status"] for path in world.layout.tracking.glob("*/events.jsonl")]
    names = {start["name"]: start["parents"] for start in starts}
    assert set(names) == {"study objectives", "study objectives pretrained", "study objectives nft-seed0"} and ends == ["FINISHED"] * 3
    assert names["study objectives"] == {} and names["study objectives nft-seed0"] == names["study objectives pretrained"] != {}


def test_finished_arms_are_kept_until_what_they_depend_on_changes(world):
    given = sections(arms=("pretrained", "nft", "rwr", "gsb_dpo"))
    first = run(world, given)
    assert run(world, given) == first and world.calls == []
    faster = replace(given, align=replace(SMALL, rwr=replace(SMALL.rwr, lr=1e-5)))
    run(world, faster)
    assert world.aligned() == ["rwr-seed0"] and [call[1][:3] for call in world.calls if call[0] == "score"] == ["rwr"]
    again = replace(given, generate=replace(given.generate, seed=3))
    run(world, again)
    assert world.aligned() == ["nft-seed0", "rwr-seed0", "gsb_dpo-seed0"] and ("vote", 3) not in world.calls  # asked, and answered at once
    assert len([call for call in world.calls if call[0] == "score"]) == 4
    more = replace(given, objectives=replace(given.objectives, seeds=2))
    run(world, more)
    assert world.aligned() == ["nft-seed1", "rwr-seed1", "gsb_dpo-seed1"] and ("vote", 3) not in world.calls
    (world.layout.syncnet / "judge" / "config.json").write_text("{}")
    run(world, replace(given, objectives=replace(given.objectives, arms=("pretrained", "nft", "gsb_dpo"))))
    assert ("vote", 3) in world.calls and len([call for call in world.calls if call[0] == "score"]) == 3


def test_a_failed_arm_is_named_when_the_others_are_done(world):
    given, world.breaks = sections(arms=("pretrained", "rwr", "nft")), "rwr"
    with pytest.raises(ValueError, match=r"^rwr-seed0: 5 steps in a row .*; the other arms are kept: .* leave it out"):
        run(world, given)
    assert world.aligned() == ["rwr-seed0", "nft-seed0"] and not (world.layout.out / "study" / "objectives.json").exists()
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
        run(world, sections(replace(SMALL, nft=replace(SMALL.nft, prompts_per_round=12))))
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

    changed = load_recipe("mini", None, ["objectives.rounds=2", "objectives.arms=[pretrained, rwr]"]).objectives
    assert changed == dataclasses.replace(ObjectivesConfig(), rounds=2, arms=("pretrained", "rwr"))

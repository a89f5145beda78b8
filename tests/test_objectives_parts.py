"""Parts of `nava study objectives`: equal budgets, the choice of pairs and prompts, and its statistics by
hand."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.scoring.statistics import (
    Draws,
    Interval,
    Table,
    difference_over_seeds,
    mean_over_seeds,
    paired,
    share_of_gain,
)
from experiments.studies.objectives.arms import budget, optimizer_steps, plan_arms, store_sizes, votes_phase
from experiments.studies.objectives.config import ARMS, ObjectivesConfig
from experiments.studies.objectives.material import is_decided, write_prompts
from experiments.studies.objectives.one_arm import rounds_cost
from experiments.studies.objectives.totals import target_of, units_of, with_totals
from experiments.studies.scores import tabulated
from finetune.gsb.pairs import ClipRef, PreferencePair
from finetune.gsb.simulated_raters import JudgeFeature
from finetune.objectives.gsb_dpo import GsbDpoConfig, GsbDpoPhase
from finetune.recipe import AlignConfig, RubricConfig
from pretrain.prompt import read_prompts
from rewards.catalog import metric
from rewards.types import Score

WORDS = ("one", "two", "three", "four", "five", "six")
ALIGN = AlignConfig()


def table(*rows: list[float]) -> Table:
    return Table.of([[None if value != value else (value, 1.0) for value in row] for row in rows])


def crossed(found: Table, resamples: int) -> Draws:
    seeds, clips = found.above.shape
    return Draws.crossed(seeds, clips, resamples)


def difference(one: Table, other: Table, resamples: int) -> Interval:
    ours, theirs = paired(one, other)
    return difference_over_seeds(ours, theirs, crossed(ours, resamples))


def share(part: Table, whole: Table, base: Table, up: bool) -> Interval:
    ours, theirs, before = paired(part, whole, base)
    return share_of_gain(ours, theirs, before, up, crossed(ours, 200))


def pair(number: int, **counts: tuple[int, int, int]) -> PreferencePair:
    first, second = (
        ClipRef(f"p{number}-k{k}", f"m#{k}", f"p{number}", "<S>one<E>", None, "0" * 64) for k in (0, 1)
    )
    return PreferencePair(f"p{number}", first, second, counts, True)


def objective_of(config: AlignConfig) -> GsbDpoConfig:
    phase = config.phases["gsb_dpo"]
    assert isinstance(phase, GsbDpoPhase)
    return phase.objective


def test_every_arm_rolls_out_as_many_clips_and_votes_take_nfts_steps():
    config = ObjectivesConfig(rounds=6, seeds=2)
    arms = plan_arms(config, ALIGN, 2)
    assert [arm.label for arm in arms[:3]] == ["pretrained", "nft-seed0", "rwr-seed0"] and len(
        arms
    ) == 1 + 2 * (len(ARMS) - 1)
    assert budget(config, ALIGN) == 6 * 24 * 8
    phases = {arm.name: arm.phase for arm in arms[1:]}
    for name in ("nft", "rwr", "awm", "grpo", "nft_chosen_third", "nft_random_third"):
        assert phases[name].rounds * phases[name].prompts_per_round * phases[name].clips_per_prompt == 1152
    count, clips = store_sizes(1152, 104)
    assert (count, clips) == (96, 12)
    assert (
        optimizer_steps(phases["nft"])
        == optimizer_steps(phases["gsb_dpo"])
        == optimizer_steps(phases["gsb_dpo_no_ties"])
        == (96, 48)
    )
    ties, dropped = (
        next(arm.config for arm in arms if arm.name == name) for name in ("gsb_dpo", "gsb_dpo_no_ties")
    )
    assert ties and dropped and (objective_of(ties).ties, objective_of(dropped).ties) == ("model", "drop")
    assert dropped.with_phase("gsb_dpo", objective=objective_of(ties)) == ties
    assert all(arm.config.stop.prompts == arm.config.stop.patience == 0 for arm in arms[1:] if arm.config)
    assert {arm.config.seed for arm in arms[1:] if arm.config} == {0, 1}


def test_another_recipes_groups_are_held_equal_too():
    uneven = ALIGN.with_phase("rwr", prompts_per_round=6, rounds=99).with_phase("grpo", clips_per_prompt=16)
    arms = {arm.name: arm for arm in plan_arms(ObjectivesConfig(rounds=3), uneven, 2)}
    assert {
        (arms[name].phase.rounds, arms[name].phase.prompts_per_round, arms[name].phase.clips_per_prompt)
        for name in ("nft", "rwr", "grpo")
    } == {(3, 24, 8)}


@given(st.integers(1, 12), st.integers(2, 30), st.integers(2, 16), st.integers(0, 80))
def test_a_store_has_the_budget_exactly(rounds, prompts_per_round, clips, more):
    total, available = rounds * prompts_per_round * clips, prompts_per_round + more
    count, each = store_sizes(total, available)
    assert count * each == total and each >= 2 and prompts_per_round <= count <= available


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(8, 400))
def test_pairs_divide_over_steps_and_ranks_and_are_never_more_than_there_are(ranks, pairs):
    phase = votes_phase(ALIGN, 6, ranks, pairs)
    assert isinstance(phase, GsbDpoPhase)
    assert phase.pairs_per_round % (phase.steps_per_epoch * ranks) == 0
    assert phase.pairs_per_round <= max(96, ranks * 4) and (
        phase.pairs_per_round <= pairs or pairs < 4 * ranks
    )


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


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"overall": (2, 0, 1)}, True),
        ({"overall": (0, 3, 0)}, False),
        ({"overall": (1, 0, 1), "picture": (0, 0, 3)}, True),
        ({"overall": (1, 1, 1), "voice": (0, 2, 1), "picture": (1, 1, 0)}, False),
        ({"overall": (0, 3, 0), "sync": (3, 0, 0)}, True),  # every axis has its own term
        ({"sync": (3, 0, 0)}, True),
    ],
)
def test_a_pair_goes_where_no_question_that_is_learned_from_has_a_winner(counts, kept):
    assert is_decided(pair(0, **counts)) is kept


def test_chosen_prompts_keep_their_order_ids_and_files(tmp_path):
    source, out = tmp_path / "a" / "p.jsonl", tmp_path / "b" / "c" / "q.jsonl"
    rows = [{"prompt": f"<S>{word}<E>", "spk_wavs": ["../v.wav", None][:1]} for word in WORDS]
    source.parent.mkdir()
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_prompts(source, {"p-00005", "p-00002"}, out)
    found = read_prompts(out)
    assert [row.data_id for row in found] == ["p-00002", "p-00005"]
    path = found[0].reference_paths[0]
    assert (
        path is not None
        and path.resolve() == (tmp_path / "v.wav").resolve()
        and str(tmp_path) not in out.read_text()
    )


def test_differences_are_over_clips_that_both_could_score():
    nan = math.nan
    ours, base = table([1.0, nan, 3.0, 5.0]), table([0.0, 9.0, nan, 4.0])
    found = difference(ours, base, 200)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0)) and found.n == 2


def test_one_pretrained_model_stands_for_every_seed():
    base = table([0.0, 1.0, 2.0])
    found = difference(table([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]), base, 500)
    assert found.n == 6 and (found.mean, found.low, found.high) == pytest.approx(
        (2.0, 1.0, 3.0)
    )  # the seeds differ, prompts do not


def test_what_is_hard_about_a_prompt_does_not_average_out_over_seeds():
    row = [0.0, 1.0] * 20
    one, four = table(row), table(*[row] * 4)
    narrow, wide = (mean_over_seeds(found, crossed(found, 4000)) for found in (one, four))
    assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.1)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(40), rel=0.15)


def test_shares_of_a_gain_are_exact_where_every_prompt_gains_alike():
    base = table([0.1, 0.5, 0.9])
    whole, part = (table([value + gain for value in (0.1, 0.5, 0.9)]) for gain in (0.4, 0.1))
    found = share(part, whole, base, True)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    lower_part, lower_whole, lower_base = (
        table([-value for value in row.above[0].tolist()]) for row in (part, whole, base)
    )
    assert share(lower_part, lower_whole, lower_base, False).mean == pytest.approx(0.25)
    assert math.isnan(share(part, whole, base, False).mean)  # a loss has no shares


def test_a_share_of_what_may_be_nothing_is_no_number():
    base, noise = table([0.0] * 10), table([1.0, -1.0] * 5)
    assert math.isnan(share(noise, noise, base, True).mean)
    ones = difference(table([1.0] * 10), base, 200)
    assert [ones.classify(up) for up in (True, False)] == ["better", "worse"]
    assert difference(noise, base, 200).classify(True) == "not told apart"
    assert difference(table([math.nan] * 10), base, 200).classify(True) == "not measured"


def test_totals_count_rewards_in_deviations_and_judges_in_the_panels_units():
    rubric = RubricConfig(audio={"sim_resemblyzer": 3.0}, sync={"wer_pocketsphinx": 1.0})
    features = (
        JudgeFeature("sync_judge", "sync", 0.5),
        JudgeFeature("picture_noise_judge", "picture", -0.25, 3.0),
    )
    base = {
        "metrics": {
            "sim_resemblyzer": [[1, 1], [3, 1]],
            "wer_pocketsphinx": [[0, 2], [2, 2]],
            "sync_judge": [[1, 1]] * 2,
            "picture_noise_judge": [[2, 1]] * 2,
        }
    }
    units = units_of(rubric, features, base)
    ours = {
        "metrics": {
            "sim_resemblyzer": [[3, 1], None],
            "wer_pocketsphinx": [[0, 2], [0, 2]],
            "sync_judge": [[1.5, 1], [1, 1]],
            "picture_noise_judge": [[2, 1], [1.5, 1]],
        }
    }
    found = with_totals(ours, units)
    assert found["rubric"] == [[pytest.approx((3 * 1 + 1 * 1) / 4), 1.0], None]
    assert [value for value, _ in found["panel"]] == pytest.approx([1 / 4, 3 * 2 / 4])
    before = with_totals(base, units)["rubric"]
    assert sum(value for value, _ in before) == pytest.approx(0.0)
    assert (target_of("gsb_dpo_no_ties"), target_of("nft_random_third")) == ("panel", "rubric")


def test_scores_become_pairs_and_unscored_clips_none():
    scores = {"wer_pocketsphinx": [Score(0.5, parts={"errors": 1, "words": 2}), Score(math.nan, "silent")]}
    scores["sync_judge"] = [Score(0.3, parts={"rho": 0.1}), Score(0.2, parts={"rho": 0.4})]
    names = ("wer_pocketsphinx", "sync_judge", "sync_judge.rho")
    found = tabulated({name: metric(name) for name in names}, scores)
    assert found["metrics"]["wer_pocketsphinx"] == [[1, 2], None] and found["metrics"]["sync_judge.rho"] == [
        [0.1, 1.0],
        [0.4, 1.0],
    ]
    assert found["reasons"]["wer_pocketsphinx"] == ["", "silent"]


def test_seconds_of_rounds_that_are_not_in_the_log_are_the_mean(tmp_path):
    rows = [
        {"seconds/rollout": 4.0, "seconds/score": 2.0, "seconds/update": value, "seconds_per_step": 10.0}
        for value in (1.0, 3.0)
    ]
    (tmp_path / "m").write_text(
        "".join(json.dumps({"step": 1, **row}) + "\n" for row in [{"held_out_total": 0.0}, *rows])
    )
    assert rounds_cost(tmp_path / "m", 4) == {"rollout": 16.0, "score": 8.0, "update": 8.0, "other": 8.0}

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from align_world import config, write_world

from experiments.alignment.inputs import align_run, pairs_and_clips
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.scoring.faults import FAILURES_IN_A_ROW, CarefulReward, RewardBroken
from experiments.scoring.latents import AlignScorer, scorer_options
from finetune.prompts import read_prompt_set
from finetune.recipe import AlignConfig, RubricConfig, StopConfig
from finetune.scores import RankScoring, Scores, means, summed
from pretrain.prompt import PromptRow
from rewards.base import unscored
from rewards.types import Clip, Score

LATENTS = (48, 2, 2, 2), (128, 5)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world) -> list[PromptRow]:
    found = read_prompt_set(world / "prompts.jsonl", config(stop=StopConfig(prompts=0))).train[0]
    return sorted(found, key=lambda row: row.line)[:3]


def latents(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *LATENTS[0], generator=generator), torch.randn(
        batch, *LATENTS[1], generator=generator
    )


class Loudness:
    """A plug-in: mean absolute sample; the second clip of a batch cannot be scored."""

    name = "loudness"

    def score(self, clips):
        found = [
            Score(float(np.abs(clip.waveform).mean()), parts={"frames": float(len(clip.frames))})
            for clip in clips
        ]
        return [unscored("silent") if index == 1 else score for index, score in enumerate(found)]


class Broken:
    name = "broken"

    def score(self, clips):
        raise RuntimeError("out of memory\nat line 3")


class Fussy:
    """Raises on clips called as `on` says; 1 for the others."""

    name = "fussy"

    def __init__(self, on: str = "", error: Exception | None = None) -> None:
        self.on, self.error = set(on.split()), error or RuntimeError("permute:\nno such axis")

    def score(self, clips):
        if any(clip.name in self.on for clip in clips):
            raise self.error
        return [Score(1.0) for _ in clips]


def named(*names: str, prompt: str = "") -> list[Clip]:
    return [Clip(None, 16_000, name=name, prompt=prompt or name) for name in names]


def scorer(world: Path, weights: dict[str, float], **options) -> AlignScorer:
    return AlignScorer(str(world / "codec"), weights, options)


def test_clips_carry_what_scorers_need(world, rows):
    made = scorer(world, {"test_align_scorer:Loudness": 1.0})
    clips = made.clips(*latents(), rows)
    assert [clip.name for clip in clips] == ["p0", "p1", "p2"] and clips[1].spans == ("two",)
    assert clips[0].references == (None,) and clips[1].references[0] is not None
    for clip in clips:
        assert clip.frames is not None and clip.frames.shape == (5, 32, 32, 3) and clip.fps == 24.0
        assert clip.waveform is not None and clip.waveform.shape == (3200,) and clip.sample_rate_hz == 16_000


def test_values_parts_reasons_and_guardrails(world, rows):
    found = scorer(world, {"test_align_scorer:Loudness": 1.0}).score(*latents(), rows)
    value = found.values["test_align_scorer:Loudness"]
    assert value.isnan().tolist() == [False, True, False] and found.reasons == {
        "test_align_scorer:Loudness": "silent"
    }
    assert found.parts["test_align_scorer:Loudness.frames"][[0, 2]].tolist() == [5.0, 5.0]
    assert {"speech_ratio", "motion", "loudness_dbfs", "clipping_ratio", "flagged"} <= found.guardrails.keys()
    assert all(len(column) == 3 for column in found.guardrails.values())


def test_latents_that_are_not_finite_have_no_score_and_harm_no_other_clip(world, rows):
    video, audio = latents()
    audio[0, 3, 2] = float("nan")
    found = scorer(world, {"snr_estimate_db": 1.0}).score(video, audio, rows).values["snr_estimate_db"]
    assert found.isnan().tolist() == [True, False, False]
    whole = scorer(world, {"snr_estimate_db": 1.0}).score(*latents(), rows).values["snr_estimate_db"]
    torch.testing.assert_close(found[1:], whole[1:])


def test_a_clip_that_a_reward_raises_on_has_its_reason_and_the_others_their_scores(world, rows, capsys):
    name = "test_align_scorer:Fussy"
    made = scorer(world, {name: 1.0}, **{name: {"on": "p1"}})
    for _ in range(2):
        found = made.score(*latents(), rows)
        assert found.values[name].isnan().tolist() == [False, True, False]
        assert found.reasons == {name: f"reward {name} failed on p1: RuntimeError: permute: no such axis"}
    video, audio = latents()
    assert made.score(video[1:2], audio[1:2], rows[1:2]).values[name].isnan().all()  # alone, but it works
    assert capsys.readouterr().err.count("failed on p1") == 1
    fresh = scorer(world, {name: 1.0}, **{name: {"on": "p1"}})
    with pytest.raises(
        ValueError, match=rf"^reward {name} failed on p1: RuntimeError: permute: no such axis$"
    ):
        fresh.score(video[1:2], audio[1:2], rows[1:2])  # nothing says that it works


def test_a_reward_that_fails_on_clip_after_clip_or_for_the_machines_sake_is_broken():
    bad = [f"x{index}" for index in range(FAILURES_IN_A_ROW)]
    careful = CarefulReward("fussy", Fussy(" ".join(bad)))
    assert [score.value for score in careful.score(named("a", "b"))] == [1.0, 1.0]
    alike = careful.score(named(*bad, prompt="one prompt"))  # its conditions may be at fault
    assert len(alike) == len(bad) and all("failed on x" in score.reason for score in alike)
    assert careful.score(named("x0", "b"))[1].value == 1.0
    for each in bad[:-1]:
        assert careful.score(named(each))[0].reason
    with pytest.raises(RewardBroken, match=f"reward fussy failed on {bad[-1]}: RuntimeError"):
        careful.score(named(bad[-1]))
    for error in (
        ConnectionError("refused"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ):
        careful = CarefulReward("fussy", Fussy("x", error))
        careful.score(named("a"))
        with pytest.raises(RewardBroken, match=r"reward fussy failed on 2 clips \(from a\)"):
            careful.score(named("a", "x"))

    class OnlyTogether(Fussy):
        def score(self, clips):
            if len(clips) > 1:
                raise ValueError("shapes")
            return super().score(clips)

    with pytest.raises(
        RewardBroken, match=r"2 clips at once \(from a\), on none of them alone: ValueError: shapes"
    ):
        CarefulReward("fussy", OnlyTogether()).score(named("a", "b"))


def test_a_reward_that_raises_is_named_in_one_line(world, rows):
    with pytest.raises(
        ValueError,
        match=r"^reward test_align_scorer:Broken failed on 3 clips \(from p0\): "
        r"RuntimeError: out of memory at line 3$",
    ):
        scorer(world, {"test_align_scorer:Broken": 1.0}).score(*latents(), rows)


def test_no_judge_and_no_unknown_reward_in_a_rubric(world):
    with pytest.raises(ValueError, match="judge"):
        scorer(world, {"wer_pocketsphinx_judge": 1.0}, wer_pocketsphinx_judge={"vocabulary": ["one"]})
    with pytest.raises(ValueError, match=r"sync_minni.*sync_mini"):
        scorer(world, {"sync_minni": 1.0})


def test_an_error_rate_counts_with_its_sign_turned(world, rows):
    made = scorer(world, {"wer_pocketsphinx": 1.0}, wer_pocketsphinx={"vocabulary": ["one", "two", "three"]})
    found = made.score(*latents(), rows)
    made.close()
    assert torch.equal(found.values["wer_pocketsphinx"], -found.parts["wer_pocketsphinx"])
    assert bool((found.parts["wer_pocketsphinx"] >= 0).all())


def test_options_of_the_pipeline_and_of_the_recipe(tmp_path):
    made = dataclasses.replace(
        AlignConfig(), reward_options={"intelligibility_pocketsphinx": {"num_processes": 3}}
    )
    options = scorer_options(made, tmp_path / "corpus", tmp_path / "codec", tmp_path / "syncnet")
    assert options["weights"] == {
        "intelligibility_pocketsphinx": 1.0,
        "sim_resemblyzer": 0.25,
        "sync_mini": 1.0,
    }
    assert options["options"]["intelligibility_pocketsphinx"]["num_processes"] == 3
    assert "ocean" in options["options"]["intelligibility_pocketsphinx"]["vocabulary"]
    assert options["options"]["sync_mini"] == {"model": str(tmp_path / "syncnet" / "reward")}
    routes = RubricConfig(video={"identity_colour_edge": 0.5}).routes()
    assert (routes["sync_mini"].modality, routes["identity_colour_edge"].modality) == ("both", "video")


def test_means_of_ranks_leave_out_what_was_not_scored():
    nan = float("nan")
    ranks = [
        Scores({"a": torch.tensor([1.0, nan])}),
        Scores({"a": torch.tensor([4.0, 4.0])}, {"a.part": torch.tensor([2.0, nan])}),
    ]
    found = means([summed(each) for each in ranks])
    assert found == {"reward/a": 3.0, "unscored/a": 0.25, "part/a.part": 2.0}
    assert means([summed(Scores({"a": torch.tensor([nan])}))]) == {"unscored/a": 1.0}


def test_samples_are_files_to_look_at(world, rows, tmp_path):
    paths = scorer(world, {"snr_estimate_db": 1.0}).write(*latents(), rows, tmp_path / "samples")
    assert [path.name for path in paths] == ["p0.mp4", "p1.mp4", "p2.mp4"] and all(
        path.stat().st_size > 500 for path in paths
    )


def test_what_alignment_needs_and_is_not_there_is_named_with_what_to_run(tmp_path):
    job = StageJob(
        recipe=load_recipe("mini", settings=["align.sequence=[gsb_dpo]"]), layout=Layout(out=tmp_path)
    )
    with pytest.raises(
        FileNotFoundError, match=r"pairs\.jsonl: no such file or folder; run `nava votes` first"
    ):
        pairs_and_clips(job)
    with pytest.raises(
        FileNotFoundError,
        match=r"chosen\.json: .*run `nava curate prompts` first, or set align.curated_prompts=false",
    ):
        align_run(job)
    assert pairs_and_clips(dataclasses.replace(job, recipe=load_recipe("mini"))) == (None, None)


class SecondOfTwo:
    """Ranks of which the first has scored nothing, with a reason."""

    def gathered_texts(self, text: str) -> list[str]:
        other = [[{"reward/loudness": [3.0, 1]}], {"loudness": "nobody speaks"}]
        return [json.dumps(["", False, json.dumps(other)]), text]


def test_reasons_are_those_of_all_ranks():
    scoring = RankScoring(None, SecondOfTwo())  # type: ignore[arg-type]
    scores, found, reasons = scoring.score([])
    assert (scores, found, reasons) == ([], {"reward/loudness": 3.0}, {"loudness": "nobody speaks"})

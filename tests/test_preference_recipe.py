"""A fitted preference by its name in the catalog: what it opens, what it refuses, and who can weigh it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from align_world import config, write_world
from preference_files import preference_model, write_model

from experiments.commands.score import score
from experiments.scoring.clips import list_clips
from experiments.scoring.config import settings_from
from experiments.scoring.latents import AlignScorer, scorer_options
from experiments.scoring.score_files import score_files
from finetune.prompts import read_prompt_set
from finetune.recipe import AlignConfig, RubricConfig, StopConfig
from pretrain.media.write import write_wav
from rewards.catalog import open_rewards
from rewards.preference import PreferenceReward
from rewards.speech.intelligibility import Intelligibility
from rewards.types import Clip, Score


@pytest.fixture(autouse=True)
def unrecorded(monkeypatch):
    """Scores are no runs here: the current folder may be the repository."""
    monkeypatch.setattr("experiments.runs.run.record_run", lambda *_: None)


RATE = 16_000
WORDS = {"vocabulary": ["yes", "no"]}
HEARING = "intelligibility_pocketsphinx"


class Peak:
    """A reward that is no part of the catalog."""

    name = "peak"

    def score(self, clips):
        return [Score(float(np.abs(clip.waveform).max())) for clip in clips]


PLUGIN = f"{__name__}:Peak"


def sounds(folder: Path) -> Path:
    for index, noise in enumerate((0.001, 0.01, 0.1)):
        random = np.random.default_rng(index)
        tone = 0.4 * np.sin(np.arange(RATE) * 0.2) * (np.arange(RATE) % 4000 > 2000)
        write_wav(
            folder / f"c{index}.wav", (tone + noise * random.standard_normal(RATE)).astype(np.float32), RATE
        )
    return folder


def opened(model: Path | None, **options):
    with open_rewards(["preference"], {"preference": {**({"model": model} if model else {}), **options}}) as (
        reward,
    ):
        return reward


def test_it_opens_what_its_model_looks_at_and_is_called_by_who_voted(tmp_path):
    clip = Clip((0.3 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32).clip(-1, 1), RATE)
    with open_rewards(["snr_estimate_db"], {}) as (plain,):
        (estimate,) = plain.score([clip])
    (found,) = opened(write_model(tmp_path / "m.json")).score([clip])
    assert found.value == pytest.approx(1.5 * (estimate.value - 20.0) / 10.0) and dict(found.parts) == {
        "snr_estimate_db": found.value
    }
    assert opened(tmp_path / "m.json").name == "preference_simulated"
    assert opened(write_model(tmp_path / "people.json", simulated=False)).name == "preference"
    (clipped,) = opened(write_model(tmp_path / "part.json", ("snr_estimate_db.clipped_share",))).score([clip])
    assert clipped.value == pytest.approx(1.5 * (estimate.parts["clipped_share"] - 20.0) / 10.0)


def test_recognisers_are_shared_with_the_other_rewards_of_a_rubric(tmp_path):
    model = write_model(tmp_path / "m.json", (HEARING,))
    options = {HEARING: WORDS, "preference": {"model": model, "options": {HEARING: WORDS}}}
    with open_rewards([HEARING, "preference"], options) as (plain, learned):
        assert isinstance(plain, Intelligibility) and isinstance(learned, PreferenceReward)
        inner = learned._rewards[HEARING]
        assert isinstance(inner, Intelligibility) and inner.recognizer is plain.recognizer


def test_a_plug_in_among_its_features_is_named_in_the_options(tmp_path):
    model = write_model(tmp_path / "m.json", ("peak", "snr_estimate_db"))
    with pytest.raises(
        ValueError,
        match=r"m\.json looks at 'peak', which is not in the catalog; name its reward under options",
    ):
        opened(model)
    (found,) = opened(model, options={PLUGIN: {}}).score(
        [Clip(np.sin(np.arange(RATE) * 0.1).astype(np.float32), RATE)]
    )
    assert found.parts["peak"] == pytest.approx(1.5 * (1.0 - 20.0) / 10.0, abs=1e-3)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (("sync_judge",), {}, "'sync_judge' is a judge"),
        (("wer_pocketsphinx_judge_normalised",), {}, "is a judge"),
        (("peak",), {"wer_pocketsphinx_judge": {}}, "is a judge"),
        (("preference",), {}, "'preference' cannot be a feature of a preference"),
        (
            ("snr_estimate_db",),
            {"sync_mini": {}},
            r"preference.options.sync_mini: .*m\.json does not look at it; did you mean 'snr_",
        ),
        (
            (HEARING,),
            {HEARING: {"vocabulry": []}},
            f"preference.options: {HEARING}.vocabulry: unknown option; did you mean 'vocabulary'",
        ),
        ((HEARING,), {}, f"preference.options: {HEARING}.vocabulary: no words"),
        (
            ("sync_mini",),
            {"sync_mini": {"model": "nowhere"}},
            "preference.options: sync_mini: nowhere: no such folder",
        ),
    ],
)
def test_what_it_refuses_is_one_line(tmp_path, features, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        opened(write_model(tmp_path / "m.json", features), options=options)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_model_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^preference: no model; set preference.model=FILE"):
        opened(None)
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file; fit a preference model"):
        opened(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text((write_model(tmp_path / "m.json")).read_text()[:-30])
    with pytest.raises(ValueError, match=r"bad\.json: .*fit it again") as caught:
        opened(tmp_path / "bad.json")
    assert "\n" not in str(caught.value)


def test_a_rubric_file_weighs_it_under_its_name_in_the_catalog(tmp_path, capsys):
    write_model(tmp_path / "m.json")
    rubric = tmp_path / "r.yaml"
    rubric.write_text(
        "items: {preference: {weight: 2.0, normalise: none}, preference.snr_estimate_db: {weight: 1.0, "
        "normalise: none}}\n"
        f"options: {{preference: {{model: '{tmp_path / 'm.json'}'}}}}\n"
    )
    score(sounds(tmp_path / "clips"), out=tmp_path / "s.jsonl", rubric=rubric)
    assert "preference_simulated" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    values = [row["scores"]["preference_simulated"]["value"] for row in rows]
    assert values == sorted(values, reverse=True) and values[0] > values[2] + 0.5
    assert [row["total"]["value"] for row in rows] == pytest.approx([3 * value for value in values])


def test_scores_of_another_model_or_of_another_network_behind_it_do_not_mix(tmp_path):
    files, out = list_clips(sounds(tmp_path / "clips")), tmp_path / "s.jsonl"
    model = write_model(tmp_path / "m.json")
    made = settings_from(["preference"], None, [f"preference.model={model}"], files)
    before = score_files(files, made, out)
    assert score_files(files, made, out) == before
    write_model(model, weight=-1.5)
    with pytest.raises(ValueError, match="scored with other rewards or settings"):
        score_files(files, made, out)
    network = tmp_path / "net"
    network.mkdir()
    other = write_model(tmp_path / "sync.json", ("sync_mini",))
    behind = [f"preference.model={other}", f"preference.options={{sync_mini: {{model: {network}}}}}"]
    looking = settings_from(["preference"], None, behind, files)
    one = looking.described()
    (network / "weights").write_text("trained again")
    assert looking.described() != one


def test_a_recogniser_behind_it_hears_the_words_of_the_corpus(tmp_path):
    model = write_model(tmp_path / "m.json", (HEARING, "snr_estimate_db"))
    files = list_clips(sounds(tmp_path / "clips"))
    found = settings_from(["preference"], None, [f"preference.model={model}"], files).options["preference"][
        "options"
    ]
    assert "ocean" in found[HEARING]["vocabulary"] and found["snr_estimate_db"] == {}
    with pytest.raises(
        ValueError, match=f"preference.options.{HEARING}.vocabulary: 'xylophone' is not among"
    ):
        settings_from(
            ["preference"], None, [f"preference.model={model}"], [replace(files[0], spans=("xylophone",))]
        )


def test_alignment_gives_what_is_behind_it_the_pipelines_options(tmp_path):
    model = write_model(tmp_path / "m.json", ("sync_mini.rho_zero", HEARING))
    align = replace(
        AlignConfig(),
        rubric=RubricConfig(audio={}, sync={"preference": 1.0}),
        reward_options={"preference": {"model": str(model), "options": {HEARING: {"num_processes": 3}}}},
    )
    found = scorer_options(align, tmp_path / "corpus", tmp_path / "codec", tmp_path / "syncnet")["options"]
    inner = found["preference"]["options"]
    assert found["preference"]["model"] == str(model) and inner["sync_mini"] == {
        "model": str(tmp_path / "syncnet" / "reward")
    }
    assert inner[HEARING]["num_processes"] == 3 and "ocean" in inner[HEARING]["vocabulary"]
    assert json.loads(json.dumps(found)) == found


def test_alignment_weighs_it_and_logs_that_votes_were_simulated(tmp_path):
    world, model = write_world(tmp_path / "world"), write_model(tmp_path / "m.json")
    rubric, options = RubricConfig(audio={"preference": 1.0}, sync={}), {"preference": {"model": str(model)}}
    align = replace(AlignConfig(), rubric=rubric, reward_options=options)
    rows = sorted(
        read_prompt_set(world / "prompts.jsonl", config(stop=StopConfig(prompts=0))).train[0],
        key=lambda row: row.line,
    )[:3]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 48, 2, 2, 2, generator=generator), torch.randn(3, 128, 5, generator=generator)
    latents[1][1] = math.nan
    learned = AlignScorer(**scorer_options(align, tmp_path, world / "codec", tmp_path)).score(*latents, rows)
    plain = (
        AlignScorer(str(world / "codec"), {"snr_estimate_db": 1.0}, {})
        .score(*latents, rows)
        .values["snr_estimate_db"]
    )
    wanted = torch.from_numpy(preference_model().utility(plain[:, None].numpy()))
    torch.testing.assert_close(learned.values["preference"], wanted, equal_nan=True)
    assert learned.values["preference"].isnan().tolist() == [False, True, False]
    assert {"preference.snr_estimate_db", "preference_simulated"} <= learned.parts.keys()

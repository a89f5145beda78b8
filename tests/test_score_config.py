import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.scoring.clips import ClipFile, list_clips
from experiments.scoring.config import settings_from
from pretrain.media.write import write_wav
from rewards.catalog import CATALOG, checked_options, open_rewards
from rewards.speech.intelligibility import Intelligibility
from rewards.speech.wer import WordErrorRate
from rewards.sync.layers import MINI
from rewards.sync.syncnet import SyncNet, save_syncnet
from rewards.types import Clip

RATE = 16_000


class MeanLevel:
    """A reward that is no part of the catalog."""

    name = "mean_level"

    def score(self, clips):
        return []


PLUGIN = f"{__name__}:MeanLevel"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("items: {snr_estimate: {}}", "unknown reward 'snr_estimate'; did you mean 'snr_estimate_db'"),
        (
            "items: {wer_pocketsphinx: {weight: 1}}",
            "items.wer_pocketsphinx.weight: lower is better, so give it a negative weight",
        ),
        (
            "items: {sync_judge: {weight: 1}}",
            "items.sync_judge.weight: a judge must stay out of what is rewarded",
        ),
        (
            "items: {sync_judge.rho_zero: {weight: 1}}",
            "items.sync_judge.rho_zero.weight: a judge must stay out",
        ),
        ("item: {}", "r.yaml: item: unknown key; did you mean 'items'"),
        (
            "items: {snr_estimate_db: {wieght: 1}}",
            "r.yaml: items.snr_estimate_db.wieght: unknown option; did you mean 'weight'",
        ),
        (
            "items: {snr_estimate_db: {}}\nguardrails: {min_lfus: 1}",
            "guardrails.min_lfus: unknown option; did you mean 'min_lufs'",
        ),
        ("items: [", "r.yaml: not YAML"),
        ("- a", "expected a mapping with items"),
    ],
)
def test_wrong_rubrics_are_one_line(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        settings_from([], tmp_path / "r.yaml", (), [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (["sim_resemblizer"], [], "did you mean 'sim_resemblyzer'"),
        (
            ["wer_whisper"],
            ["wer_whisper.weight=a"],
            "wer_whisper.weight: unknown option; did you mean 'weights'",
        ),
        (
            ["wer_whisper"],
            ["wer_whisper.scoring=seed"],
            "wer_whisper.scoring: unknown value 'seed'; did you mean",
        ),
        (["wer_whisper"], ["sim_resemblyzer.a=1"], "'sim_resemblyzer' is not asked for"),
        (["wer_whisper"], ["weights"], "expected REWARD.OPTION=VALUE"),
        ([], [], "no rewards: give --rewards"),
    ],
)
def test_wrong_names_and_options(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        checked = settings_from(rewards, None, options, [])
        checked_options(checked.rewards, checked.options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("syncnet", "syncnet: weights missing; set syncnet.weights=PATH"),
        ("fd_verse_bench", "weights missing"),
        ("wer_whisper", "weights missing"),
        ("sim_wavlm_ecapa", "weights missing"),
        ("audiobox_pq", "weights missing"),
        ("wer_endpoint", "set wer_endpoint.base_url"),
        ("wer_pocketsphinx", "vocabulary: no words"),
        ("no.such.package:Reward", "is not allowed, and was not imported"),
        ("test_score_config.no.such:Reward", "cannot be imported"),
        (f"{__name__}:MeanLevle", "has no 'MeanLevle'; did you mean 'MeanLevel'"),
        (f"{__name__}:Path", "has no `name` and `score"),
    ],
)
def test_rewards_that_cannot_be_built_say_why(name, message):
    with pytest.raises(ValueError, match=message), open_rewards([name], {}):
        pass


def test_every_offline_reward_is_called_as_the_catalog_says(tmp_path):
    torch.manual_seed(0)
    save_syncnet(SyncNet(MINI), tmp_path / "net")
    for voice in "ab":
        write_wav(tmp_path / "bank" / f"{voice}_1.wav", np.sin(np.arange(RATE) * 0.1), RATE)
    names = [name for name, entry in CATALOG.items() if entry.offline]
    options: dict[str, dict[str, Any]] = {
        name: {"vocabulary": ["yes", "no"]} for name in names if "pocketsphinx" in name
    }
    options |= {name: {"model": tmp_path / "net"} for name in ("sync_mini", "sync_judge")}
    options["voice_accuracy_resemblyzer"] = {"bank": tmp_path / "bank"}
    with open_rewards(names, options) as rewards:
        assert [reward.name for reward in rewards] == names
        listeners = [reward.recognizer for reward in rewards if isinstance(reward, Intelligibility)]
        spellers = [reward.transcriber for reward in rewards if isinstance(reward, WordErrorRate)]
        assert len(spellers) == 2 and [
            one is other for one, other in zip(listeners, spellers, strict=True)
        ] == [True, True]
        for reward in rewards:
            (answer,) = reward.score([Clip(None, RATE)])
            assert math.isnan(answer.value) and answer.reason


def test_the_same_reward_twice_is_refused():
    with (
        pytest.raises(ValueError, match="two rewards are called 'mean_level'"),
        open_rewards([PLUGIN, f"{PLUGIN}"], {}),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "x"}\n', "1 video: missing; give a folder"),
        ('{"prompt": "x", "video": "a.mp4"}\n{"prompt": "y"}\n', "2 video: expected a path"),
        ('{"prompt": "<S>x", "video": "a.mp4"}\n', "1 prompt: <S> at character 1 without <E>"),
        ("", "the file is empty"),
        ("nonsense\n", "1 json: not valid JSON"),
    ],
)
def test_wrong_sources(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        list_clips(tmp_path / "p.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no index\.jsonl and no"):
        list_clips(tmp_path / "empty")


def test_the_recogniser_hears_the_corpus_not_the_answers():
    clips = [ClipFile("a", Path("a.mp4"), spans=("Banana, doctor!",))]
    strange = ClipFile("b", Path("b.mp4"), spans=("xylophone",))  # alone; beside others it is a row's reason
    for name in ("wer_pocketsphinx", "intelligibility_pocketsphinx", "wer_pocketsphinx_judge"):
        vocabulary = settings_from([name], None, (), clips).options[name]["vocabulary"]
        assert {"banana", "doctor"} < set(vocabulary) and len(vocabulary) >= 20
        with pytest.raises(ValueError, match=f"{name}.vocabulary: 'xylophone' is not among the"):
            settings_from([name], None, (), [strange])
        assert settings_from([name], None, (), [strange, *clips]).options[name]["vocabulary"] == vocabulary
        own = settings_from([name], None, (f"{name}.vocabulary=[xylophone]",), clips)
        assert own.options[name] == {"vocabulary": ["xylophone"]}

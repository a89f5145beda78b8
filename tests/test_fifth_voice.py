"""The example of fine-tuning: what its clips say, what its prompts ask for, and the table of its numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from align_world import write_world
from test_lora import fill

from experiments.benchmarks.fifth_voice import world as example
from experiments.benchmarks.fifth_voice.measure import Trained, clips_of
from experiments.benchmarks.fifth_voice.report import rows_of
from experiments.benchmarks.fifth_voice.voice import VOICE, add_voice
from finetune.adapters import Adapter, gathered, save_adapter
from finetune.lora import DEFAULT, LoraConfig, adapter_parameters, inject
from pretrain.data.corpus.bank import load_bank
from pretrain.data.plain import plain_rows
from pretrain.generation.config import GenerateConfig
from pretrain.model.checkpoint import load_model
from pretrain.prompt import parse, read_prompts
from pretrain.sampling import SamplerConfig


@pytest.fixture(autouse=True)
def bank_as_it_was():
    """The voice is put into the process's bank, which other tests read."""
    yield
    load_bank.cache_clear()
    add_voice.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "CLIPS", 2)
    example.write_world(tmp_path)
    return tmp_path


def test_no_clip_and_no_reference_says_a_word_of_the_prompts(folder):
    said, unsaid = example.words()
    clips = {parse(row.text).spans[0].text for row in plain_rows(folder / example.CLIPS_FOLDER)}
    assert clips == set(said[:2])
    prompts = {name: read_prompts(folder / "prompts" / f"{name}.jsonl") for name in unsaid}
    asked = {name: {row.prompt.spans[0].text for row in rows} for name, rows in prompts.items()}
    assert asked == {name: set(words) for name, words in unsaid.items()}
    groups = [set(said), *asked.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    assert all(len(rows) == example.PROMPTS for rows in prompts.values())
    assert all(path and path.is_file() for rows in prompts.values() for path in rows[0].reference_paths)


def test_the_voice_has_every_word_at_every_speed_and_the_bank_s_loudness():
    add_voice()
    bank = load_bank()
    for word in bank.words:
        takes = bank.utterances[word, VOICE]
        assert len(takes) == example.TAKES
        lengths = [len(take.waveform) for take in takes]
        assert lengths[0] < lengths[-1]
        for take in takes:
            assert np.sqrt(np.mean(take.waveform**2)) == pytest.approx(0.09, abs=0.002)


def test_a_row_has_the_paired_difference_over_seeds():
    """Word errors are errors over words; a clip that a side lacks takes no part in the difference."""
    before = {"wer": [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), None]}
    after = [{"wer": [(0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0)]}, {"wer": [(0.0, 1.0)] * 4}]
    (row,) = rows_of(before, after)
    assert row.before.mean == pytest.approx(2 / 3) and row.before.n == 3
    assert row.after is not None and row.moved is not None
    assert row.seeds == pytest.approx((1 / 3, 0.0)) and row.after.mean == pytest.approx(1 / 6)
    assert row.moved.mean == pytest.approx(1 / 6 - 2 / 3)
    assert json.loads(json.dumps(row.as_json()))["before"]["n"] == 3
    (alone,) = rows_of(before, [])
    assert alone.after is None and alone.moved is None


def test_clips_of_the_base_and_of_an_adapter_are_made_once(tmp_path):
    """Another adapter sounds different; a second call reads what the first one made."""
    made = write_world(tmp_path)
    trained = Trained(made / "base", made / "codec", made)
    model, described = load_model(trained.model)
    fill(inject(model, LoraConfig(rank=2), (DEFAULT,)))
    known = Adapter(flavor="debug", base_id=str(described.facts["checkpoint_id"]), config=LoraConfig(rank=2))
    save_adapter(tmp_path / "adapter", gathered(adapter_parameters(model, DEFAULT)), known)
    config = GenerateConfig(
        sampler=SamplerConfig(solver="euler", steps=2), num_frames=5, height=32, width=32, bf16=False
    )

    def sounds(adapter):
        clips = clips_of(trained, made / "prompts.jsonl", adapter, tmp_path / "made", config)
        return np.stack([clip.waveform for clip in clips])

    base, tuned = sounds(None), sounds(tmp_path / "adapter")
    assert base.shape == tuned.shape and len(base) == 10
    assert np.abs(base - tuned).max() > 1e-3
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("*/*.wav")}
    assert len(written) == 20
    assert np.array_equal(sounds(None), base) and np.array_equal(sounds(tmp_path / "adapter"), tuned)
    assert all(path.stat().st_mtime_ns == changed for path, changed in written.items())

import dataclasses
import json
import math
import shutil
import signal

import pytest
import torch
from rank_processes import run_processes
from rewriter_world import PAIRS, ROWS, Vowels, adapter, dpo, grpo, small_model, tune_and_die

from finetune.rewriter import checkpoints, tune
from finetune.rewriter.form import messages
from finetune.rewriter.language_model import check_folder, load
from finetune.rewriter.tune import tune_dpo, tune_grpo
from pretrain.prompt import parse


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that nothing befell."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "reward_functions", Vowels().functions)
        assert tune_grpo(grpo(), model, ROWS, out).status == "finished"
    return out


def steps(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(one, other):
    ours, theirs = adapter(one), adapter(other)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6


@pytest.mark.slow
def test_an_end_on_request_goes_on_to_the_same_adapter(model, whole, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tune, "reward_functions", Vowels(at=3).functions)
    stopped = tune_grpo(grpo(), model, ROWS, tmp_path)
    assert (stopped.status, stopped.step) == ("interrupted", 3) and not stopped.model.exists()
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(tune, "reward_functions", Vowels().functions)
    assert tune_grpo(grpo(save_every=1), model, ROWS, tmp_path).status == "finished"
    assert_same(tmp_path, whole)
    assert steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_adapter(model, whole, tmp_path, monkeypatch):
    assert run_processes(tune_and_die, 1, tmp_path, model, tmp_path, 4) == [-signal.SIGKILL]
    assert checkpoints.newest(tmp_path)[0] == 2
    monkeypatch.setattr(tune, "reward_functions", Vowels().functions)
    assert tune_grpo(grpo(), model, ROWS, tmp_path).status == "finished"
    assert_same(tmp_path, whole)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_finished_run_is_finished_again_without_a_step(model, whole, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(out / "model")  # killed before it was written
    before = adapter(out)

    def nothing(*_):
        raise AssertionError("no step is left")

    monkeypatch.setattr(tune, "reward_functions", lambda *_: ([nothing], [1.0]))
    tuned = tune_grpo(grpo(), model, ROWS, out)
    assert tuned.status == "finished" and (tuned.model / "model.safetensors").is_file()
    assert all(torch.equal(before[name], value) for name, value in adapter(out).items())


def test_the_merged_model_is_base_and_adapter(model, whole):
    from peft import PeftModel

    base, tokenizer = load(model, "cpu")
    merged, _ = load(whole / "model", "cpu")
    asked = tokenizer("A man says", return_tensors="pt")
    with torch.no_grad():
        plain = base(**asked).logits
        adapted = PeftModel.from_pretrained(base, whole / "adapter")(**asked).logits
        assert torch.allclose(merged(**asked).logits, adapted, atol=1e-4)
        assert not torch.allclose(plain, adapted, atol=1e-3)
    assert tokenizer.chat_template and (whole / "model" / "tokenizer.json").is_file()


def expected_vowels(folder) -> float:
    """Share of vowels in the first token of an answer, over all tokens by their probability."""
    network, tokenizer = load(folder, "cpu")
    words = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    shares = torch.tensor([sum(sign in "aeiou" for sign in word) / max(1, len(word)) for word in words])
    asked = [
        tokenizer(f"<ask>{messages(row.prompt.text)[-1]['content']}<answer>", return_tensors="pt")
        for row in ROWS
    ]
    with torch.no_grad():
        return sum(float(network(**each).logits[0, -1].softmax(-1) @ shares) for each in asked) / len(asked)


def test_grpo_makes_likelier_what_is_rewarded(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "reward_functions", Vowels().functions)
    changes = {
        "steps": 12,
        "batch": 32,
        "micro_batch": 32,
        "group": 16,
        "learning_rate": 3e-2,
        "save_every": 100,
        "completion_tokens": 2,
    }
    tuned = tune_grpo(grpo(**changes), model, ROWS, tmp_path)
    assert expected_vowels(tuned.model) > expected_vowels(model) + 0.05


def test_dpo_prefers_what_was_preferred(model, tmp_path):
    tuned = tune_dpo(dpo(steps=12, learning_rate=3e-2, save_every=100), model, PAIRS, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert tuned.status == "finished" and rows[-1]["loss"] < 0.65
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # the adapter begins as nothing
    assert rows[-1]["rewards/accuracies"] == 1.0


def test_another_run_does_not_go_on_in_this_folder(model, whole):
    with pytest.raises(ValueError, match=r"begun with another config; give another folder"):
        tune_grpo(grpo(seed=1), model, ROWS, whole)
    with pytest.raises(ValueError, match="begun with another data"):
        tune_grpo(grpo(), model, ROWS[1:], whole)
    with pytest.raises(ValueError, match="begun with another algorithm"):
        tune_dpo(dpo(), model, PAIRS, whole)


def test_checkpoints_count_when_they_are_whole_and_as_they_were(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "copy")
    torn = out / "checkpoints" / "checkpoint-9"
    torn.mkdir()
    (torn / "optimizer.pt").write_bytes(b"half")
    assert checkpoints.newest(out)[0] == 4 and not torn.exists()
    state = out / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    state.write_bytes(state.read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"optimizer.pt: not as it was saved"):
        checkpoints.newest(out)
    state.with_name("scaler.pt").write_bytes(b"a pickle of somebody's")
    with pytest.raises(ValueError, match="not as it was saved"):
        checkpoints.newest(out)


def test_nothing_is_reported_to_anybody(model, tmp_path, monkeypatch):
    def told(*_, **__):
        raise AssertionError("telemetry")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", told)
    monkeypatch.setattr(tune, "reward_functions", Vowels().functions)
    tune_grpo(grpo(steps=1), model, ROWS, tmp_path)
    assert not [path for part in ("adapter", "model") for path in (tmp_path / part).glob("README.md")]


def test_a_reward_that_fails_ends_the_run_with_its_line(model, tmp_path):
    def score(rewrites, rows):
        raise ValueError("reward sync_mini failed: its network is gone")

    quiet = [row for row in ROWS if not row.prompt.spans]
    with pytest.raises(ValueError, match="its network is gone"):
        tune_grpo(grpo(batch=4, rewards={"clips": 1.0}), model, quiet, tmp_path, score)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_tuning_says_so(value):
    from transformers import TrainerControl, TrainerState

    from finetune.rewriter.watch import Watch

    watch = Watch(None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"diverged at step 7: grad_norm is (nan|inf); lower learning_rate"):
        watch.on_log(None, TrainerState(global_step=7), TrainerControl(), {"loss": 0.1, "grad_norm": value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only pytorch_model.bin, a pickle",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors; fetch"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}'),
            "Python code of the model's own",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"auto_map": {}}'),
            "Python code of the model's own",
        ),
        (lambda folder: (folder / "custom_generate").mkdir(), "custom_generate"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter merged"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)
def test_folders_that_must_not_be_loaded(model, tmp_path, change, message):
    folder = shutil.copytree(model, tmp_path / "model")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        tune_grpo(grpo(), folder, ROWS, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "part.bin"])
def test_an_index_names_only_safetensors_of_its_folder(model, tmp_path, name):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="no safetensors file of this folder"):
        check_folder(folder)


def test_what_does_not_fit_is_refused_before_training(model, tmp_path):
    with pytest.raises(ValueError, match=r"takes 512 tokens, and a request of \d+ with an answer of 600"):
        tune_grpo(grpo(completion_tokens=600), model, ROWS, tmp_path)
    with pytest.raises(ValueError, match=r"1 prompts, and a step takes 2"):
        tune_grpo(grpo(), model, ROWS[:1], tmp_path)
    with pytest.raises(ValueError, match="no vLLM"):
        tune_grpo(grpo(vllm="http://localhost:1"), model, ROWS, tmp_path)


def test_half_a_surrogate_pair_is_named(model, tmp_path):
    torn = dataclasses.replace(ROWS[0], prompt=parse("A man \ud83d waves."))
    with pytest.raises(ValueError, match=r"'p0': half a surrogate pair at character 7"):
        tune_grpo(grpo(batch=4), model, [torn], tmp_path / "grpo")
    with pytest.raises(ValueError, match="half a surrogate pair"):
        tune_dpo(dpo(), model, [dataclasses.replace(PAIRS[0], rejected="\udc00")], tmp_path / "dpo")
    assert not list(tmp_path.iterdir())

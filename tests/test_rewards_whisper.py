"""Whisper from a local folder: a tiny random model with its tokenizer, made here."""

import hashlib

import numpy as np
import pytest
import torch

from rewards.speech.whisper import WINDOW_S, WhisperTranscriber

RATE = 16_000
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|notimestamps|>",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_tiny_whisper(folder, seed=0, multilingual=True):
    """A random Whisper that emits letters; its language and task tokens are in the generation config as in
    published ones."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    vocabulary = {token: index for index, token in enumerate([*LETTERS, *SPECIAL])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:]]})
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    end, start, english, german, transcribe, translate, no_times = (vocabulary[token] for token in SPECIAL)
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=24,
        init_std=1.0,
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        max_length=12,
        suppress_tokens=[],
        no_timestamps_token_id=no_times,
        is_multilingual=multilingual,
        begin_suppress_tokens=[end],
        lang_to_id={"<|en|>": english, "<|de|>": german},
        task_to_id={"transcribe": transcribe, "translate": translate},
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper"))


def sounds(*seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        (0.3 * random.standard_normal(round(s * RATE)) * np.linspace(0, i, round(s * RATE))).astype(
            np.float32
        )
        for i, s in enumerate(seconds, 1)
    ]


def test_batches_order_and_size_do_not_change_the_texts(folder):
    batch = sounds(1.0, 0.5, 2.0)
    one_by_one, together = WhisperTranscriber(folder, batch_size=1), WhisperTranscriber(folder, batch_size=8)
    texts = together.transcribe(batch)
    assert texts == one_by_one.transcribe(batch)
    assert texts[::-1] == together.transcribe(batch[::-1])
    assert all(texts) and not any("<" in text for text in texts)
    assert together.transcribe([]) == []


def test_greedy_decoding_matches_a_loop_over_the_network(folder):
    transcriber = WhisperTranscriber(folder)
    (sound,) = sounds(1.5)
    features = transcriber.processor(sound, sampling_rate=RATE, return_tensors="pt").input_features
    ids = {token: index for index, token in enumerate([*LETTERS, *SPECIAL])}
    tokens = [
        ids[token] for token in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    ]
    prompt = len(tokens)
    while len(tokens) < prompt + 12 and tokens[-1] != ids["<|endoftext|>"]:
        with torch.no_grad():
            logits = transcriber.model(
                input_features=features, decoder_input_ids=torch.tensor([tokens])
            ).logits[0, -1]
        if len(tokens) == prompt:
            logits[ids["<|endoftext|>"]] = -torch.inf  # begin_suppress_tokens
        tokens.append(int(logits.argmax()))
    expected = "".join(LETTERS[token] for token in tokens[prompt:] if token < len(LETTERS))
    assert transcriber.transcribe([sound]) == [expected]


def test_language_and_task_reach_the_decoder(folder):
    batch = sounds(1.0, 1.5, 2.0)
    texts = {
        options: WhisperTranscriber(folder, language=options[0], task=options[1]).transcribe(batch)
        for options in (("en", "transcribe"), ("de", "transcribe"), ("en", "translate"))
    }
    assert len({tuple(value) for value in texts.values()}) == 3


def test_long_sounds_are_cut_into_windows(folder):
    transcriber = WhisperTranscriber(folder)
    (long,) = sounds(WINDOW_S + 5.0)
    first, second = long[: WINDOW_S * RATE], long[WINDOW_S * RATE :]
    assert transcriber.transcribe([long]) == [" ".join(transcriber.transcribe([first, second]))]


def test_a_model_of_one_language_is_not_told_which(tmp_path):
    transcriber = WhisperTranscriber(save_tiny_whisper(tmp_path, multilingual=False), language="en")
    assert "language" not in transcriber.options
    assert transcriber.transcribe(sounds(1.0))[0]


def test_the_digest_is_checked_and_the_licence_is_told(folder, capsys):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert WhisperTranscriber(folder, digest, name="whisper_tiny").name == "whisper_tiny"
    assert "MIT" in capsys.readouterr().err
    with pytest.raises(ValueError, match="sha256"):
        WhisperTranscriber(folder, "0" * 64)


def test_a_small_model_is_not_called_large(folder):
    with pytest.raises(ValueError, match="not Whisper large v3"):
        WhisperTranscriber(folder, name="whisper_large_v3")


def test_missing_and_damaged_models_are_one_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        WhisperTranscriber(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="not a Whisper model") as caught:
        WhisperTranscriber(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_tensors_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_tiny_whisper(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.encoder.conv1.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.encoder\.conv1\.weight"):
        WhisperTranscriber(tmp_path)

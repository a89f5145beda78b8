"""Numbers, nesting and sizes in files cost no memory, no time and no traceback."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli import main
from experiments.scoring.config import read_rubric
from finetune.gsb.votes import read_votes
from pretrain.clip_kind import check_memory
from pretrain.codecs.load import load_codecs
from pretrain.codecs.text import HashedTextEncoder
from pretrain.config import override, read_yaml
from pretrain.files import MAX_WHOLE, read_json, strict_json
from pretrain.generation.config import GenerateConfig
from pretrain.jsonl import FieldError, parse_line
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import read_model_folder
from pretrain.prompt import read_prompts
from pretrain.types import num_video_latents

pytestmark = pytest.mark.security
VOTE = {
    **{"user_id": "u", "left_model": "a", "right_model": "b"},
    **{"choice": "left", "ours_side": None, "case_id": "c"},
}
DEEP = "[" * 50_000


@pytest.mark.parametrize("digits", [21, 400, 4_000, 10_000, 200_000])
@pytest.mark.parametrize("field", ["seconds", "case_id", "seed", "repeat", "other"])
def test_a_vote_with_a_long_number_names_its_line(tmp_path, field, digits):
    path = tmp_path / "votes.jsonl"
    row = json.dumps({**VOTE, field: "NUMBER"}).replace('"NUMBER"', "9" * digits)
    path.write_text(json.dumps(VOTE) + "\n" + row + "\n")
    with pytest.raises(
        ValueError, match=rf"^{path}:2 json: not valid JSON \(a number of too many digits\)"
    ) as error:
        read_votes(path)
    assert len(str(error.value)) < 400


@given(st.integers())
def test_numbers_of_64_bits_are_taken_and_longer_ones_not(number):
    row = parse_line(json.dumps({"a": number}).encode(), 1, False)
    assert row == {"a": number} if abs(number) <= MAX_WHOLE else isinstance(row, FieldError)


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 50_000, "9" * 10_000, "-" + "9" * 60, '{"a": 1' + "0" * 5_000 + "}"]
)
def test_json_without_end_is_a_value_error(tmp_path, text):
    with pytest.raises(ValueError):
        strict_json(text)
    (tmp_path / "config.json").write_text(text)
    for read in (read_model_folder, load_codecs, lambda folder: read_json(folder / "config.json", "again")):
        with pytest.raises(ValueError, match=r"config\.json") as error:
            read(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


def bomb(levels: int = 9, width: int = 9) -> str:
    names = [f"a{number}" for number in range(levels)]
    lines = [f"{names[0]}: &{names[0]} [{', '.join(['x'] * width)}]"]
    for before, name in pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        "items: &a [*a]",
        DEEP,
        "{a: " * 30_000,
        "a: " + "9" * 10_000,
        "a: 0x" + "f" * 10_000,
        "a: 0b" + "1" * 100_000,
        "a: 1" + ":59" * 5_000,
        "a: 2020-99-99",
        "a: !!python/object/apply:os.system [touch x]",
        "a: !!python/name:os.system",
        "!!binary x: 1",
        "? [a]\n: 1",
        "a: !!timestamp x",
        "\x1b[2J",
        "x" * (16 * 2**20 + 1),
    ],
)
def test_yaml_that_is_made_to_hurt_is_a_yaml_error(tmp_path, text):
    started = time.perf_counter()
    try:
        found = read_yaml(text)
        assert len(repr(found)) < 100_000
    except yaml.YAMLError:
        pass
    path = tmp_path / "rubric.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)) as error:
        read_rubric(path)
    assert "\n" not in str(error.value) and time.perf_counter() - started < 30


def prompts(tmp_path: Path, **sizes: int) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "A woman says <S>yes<E>.", **sizes}) + "\n")
    return path


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_frames": 10**9 + 1},
        {"num_frames": 10**18 + 1},
        {"height": 32 * 10**6},
        {"width": 32 * 10**9},
        {"num_frames": -(10**18) + 1},
    ],
)
def test_sizes_beyond_all_clips_are_refused_with_their_line(tmp_path, sizes):
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:1 {next(iter(sizes))}: "):
        read_prompts(prompts(tmp_path, **sizes))


def test_clips_that_fill_the_memory_are_refused_before_anything_is_made(tmp_path):
    rows = read_prompts(prompts(tmp_path, num_frames=100_001, height=16_384, width=16_384))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: 100001 frames of 16384x16384 pixels are .* GiB"):
        check_memory(rows, GenerateConfig(), 24.0)
    rows = read_prompts(prompts(tmp_path, num_frames=4_801, height=1088, width=1088))
    check_memory(rows, GenerateConfig(), 24.0)
    with pytest.raises(ValueError, match=r"at once are more than .* lower batch_size"):
        check_memory(rows * 100_000, GenerateConfig(), 24.0, 100_000)
    with pytest.raises(ValueError, match="GiB when decoded"):
        check_memory(read_prompts(prompts(tmp_path)), GenerateConfig(fps=1e-6), 1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"num_frames": 10**9 + 1},
        {"height": 32 * 10**6},
        {"batch_size": 10**9},
        {"sampler": {"steps": 10**9}},
        {"fps": float("inf")},
    ],
)
def test_settings_of_generation_have_limits(values):
    with pytest.raises(ValueError, match=r"at most|finite|positive"):
        override(GenerateConfig(), values)


@pytest.mark.parametrize(
    "values",
    [{"num_alignment_blocks": 10**9}, {"width": 24 * 10**9}, {"text_width": 10**12}, {"ffn_width": 10**15}],
)
def test_a_models_config_asks_for_no_network_without_end(values):
    with pytest.raises(ValueError, match="at most"):
        override(ModelArgs(), values)


def test_a_codecs_config_asks_for_no_text_without_end():
    for width, tokens in ((2**30, 512), (256, 2**40), (256, -1)):
        with pytest.raises(ValueError, match="set "):
            HashedTextEncoder(width, tokens)
    with pytest.raises(ValueError, match="at most 100001"):
        num_video_latents(10**9 + 1)


def test_a_million_frames_is_one_line_of_the_command(tmp_path, capsys):
    assert_refused(["prompt", "check", str(prompts(tmp_path, num_frames=10**9 + 1))], capsys)


def assert_refused(arguments: list[str], capsys) -> None:
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert code in (1, 2) and "num_frames" in said.out + said.err and len(said.out + said.err) < 2_000

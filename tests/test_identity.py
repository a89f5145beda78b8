"""What a training depends on: a pure difference, every field decided on, older records read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from align_world import align_run, write_world
from align_world import config as align_config
from hypothesis import given, settings
from hypothesis import strategies as st
from titan_world import config, pretend_state, write_latents

from finetune.align_run import AlignRun, by_content
from finetune.recipe import AlignConfig
from finetune.sft.config import FinetuneConfig
from pretrain.config import override, to_json
from pretrain.files import write_json
from pretrain.launch.continuing import claim, recorded, verdict_of
from pretrain.launch.identity import (
    SPEED_OPTIONS,
    Difference,
    Identity,
    difference,
    flat,
    is_neutral,
    split,
)
from pretrain.launch.stage_run import StageRun, check_run_folder
from pretrain.launch.torchrun import IDENTITY
from pretrain.recipe import PretrainConfig, recipe_hash
from rewards.catalog import CATALOG
from rewards.recipes.base import SPEED_ONLY


def words(text: str, prefix: str = "") -> set[str]:
    return {f"{prefix}{word}" for word in text.split()}


# Every field that counts, written out: a new field of a recipe belongs here or into identity.NEUTRAL.
PRETRAIN_COUNTS = (
    words("flavor global_batch_size mix_lengths seed mixed_precision float8 ema_decay shuffle_shards")
    | words("beta1 beta2 eps weight_decay grad_clip moments", "optimizer.")
    | words("draw weight shift logit_mean logit_std", "objective.levels.")
    | words("text modality_mask timbre_kept first_frame", "objective.dropout.")
    | words("objective.video_weight objective.audio_weight policy.spike_factor policy.spike_window")
    | words("name steps tasks sets audio_sets audio_only_batch_factor lr warmup_steps", "stages.stage1.")
    | words("decay_fraction decay min_lr_factor", "stages.stage1.")
)
PARALLEL = words(
    "replicas context activation_checkpointing shard_blocks reshard_after_forward compile_blocks", "parallel."
)
MONITOR = words("peak_tflops trace_buf_size profile profile_ranks profile_warmup", "monitor.")
PRETRAIN_NEUTRAL = (
    words("interval folder asynchronous keep_last keep_every create_seed_checkpoint", "checkpoint.")
    | words("deterministic")
    | MONITOR
    | words("log_every validate_every validation_samples latents prefetch cache_gb local_batch_size")
    | words("policy.max_skips_in_a_row")
    | PARALLEL
)
ALIGN_NEUTRAL = (
    words("checkpoint_every keep_last samples max_flat_rounds max_skips rubric.allow_prompt_blind") | PARALLEL
)
FINETUNE_NEUTRAL = (
    words("interval folder asynchronous keep_last keep_every create_seed_checkpoint", "checkpoint.")
    | words("deterministic")
    | MONITOR
    | words("required max_bad muted_db tolerance_s checked patience", "sound.")
    | words("log_every validate_every validation_samples validation base prompts clips_every clips")
    | words("prefetch cache_gb local_batch_size policy.max_skips_in_a_row")
    | PARALLEL
)
FINETUNE_COUNTS = (
    words("full steps lr warmup_steps decay_fraction decay min_lr_factor tasks audio_only_batch_factor")
    | words("base_share base_target base_weight global_batch_size mix_lengths seed mixed_precision")
    | words("ema_decay shuffle_shards")
    | words("text modality_mask timbre_kept first_frame", "clips_dropout.")
    | words("rank alpha targets seed rslora dora base", "lora.")
    | words("video audio shared", "lr_scale.")
    | words("beta1 beta2 eps weight_decay grad_clip moments", "optimizer.")
    | words("draw weight shift logit_mean logit_std", "objective.levels.")
    | words("text modality_mask timbre_kept first_frame", "objective.dropout.")
    | words("objective.video_weight objective.audio_weight policy.spike_factor policy.spike_window")
)
ALIGN_COUNTS = (
    words("sequence reward_options guardrails curated_prompts seed ema_decay weight_decay grad_clip moments")
    | words("mixed_precision num_frames fps height width lora stop deployed")
    | words("video audio sync floors watched advantage", "rubric.")
)


def fields_of(value: Any, depth: int = 9, prefix: str = "") -> set[str]:
    """Dotted names of the fields of a tree of dataclasses; mappings of other values are one field."""
    found: set[str] = set()
    for item in dataclasses.fields(value):
        inner, name = getattr(value, item.name), f"{prefix}{item.name}"
        found |= (
            fields_of(inner, depth - 1, f"{name}.") if dataclasses.is_dataclass(inner) and depth else {name}
        )
    return found


def test_every_field_of_pretraining_is_decided_on() -> None:
    whole = fields_of(PretrainConfig()) - {"stages"}
    whole |= fields_of(PretrainConfig().stages["stage1"], prefix="stages.stage1.")
    assert whole == PRETRAIN_COUNTS | PRETRAIN_NEUTRAL
    assert {name for name in whole if is_neutral(name, "pretrain")} == PRETRAIN_NEUTRAL


def test_every_field_of_fine_tuning_is_decided_on() -> None:
    whole = fields_of(FinetuneConfig())
    assert whole == FINETUNE_COUNTS | FINETUNE_NEUTRAL
    assert {name for name in whole if is_neutral(name, "finetune")} == FINETUNE_NEUTRAL


def test_every_field_of_alignment_is_decided_on() -> None:
    whole = fields_of(AlignConfig(), depth=1) - {"phases"}
    whole = {next((a for a in ALIGN_COUNTS if name.startswith(f"{a}.")), name) for name in whole}
    assert whole == ALIGN_COUNTS | ALIGN_NEUTRAL
    assert {name for name in whole if is_neutral(name, "align")} == ALIGN_NEUTRAL
    phases = {name: fields_of(phase) for name, phase in AlignConfig().phases.items()}
    neutral = {f"{name}.{one}" for name, fields in phases.items() for one in fields}
    assert {name.split(".", 1)[1] for name in neutral if is_neutral(name, "align")} == {
        "micro_batch",
        "rollout_batch",
    }


def other(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value * 2, value / 2 if isinstance(value, float) else 0, 0.25]
    return (
        ["bf16", "fp32", "8bit", "tensorwise", "debug", "elsewhere", "full", "linear", "release", "flat"]
        if value != []
        else []
    )


def test_the_hash_of_a_recipe_leaves_out_what_is_neutral_and_nothing_else() -> None:
    recipe, changed = config(), 0
    for name, value in flat(to_json(recipe)).items():
        for new in other(value) if isinstance(value, (str, int, float)) else ():
            nested: Any = new
            for key in reversed(name.split(".")):
                nested = {key: nested}
            try:
                after = override(recipe, nested)
            except (ValueError, TypeError):
                continue
            if after == recipe:
                continue
            changed += 1
            same = recipe_hash(after, "stage1") == recipe_hash(recipe, "stage1")
            assert same == is_neutral(name, "pretrain"), name
    assert changed > 30


names = st.sampled_from(["a", "b", "c.d"])
identities = st.builds(
    Identity,
    settings=st.dictionaries(names, st.integers(0, 2)),
    inputs=st.dictionaries(names, st.sampled_from(["x", "y"])),
    parents=st.dictionaries(names, st.sampled_from(["x", "y"])),
    code=st.dictionaries(names, st.sampled_from(["x", "y"])),
    neutral=st.dictionaries(st.sampled_from(["n.a", "n.b"]), st.integers(0, 2)),
)


@given(identities, identities)
@settings(max_examples=100)
def test_a_difference_is_empty_for_equals_and_turns_around(a: Identity, b: Identity) -> None:
    assert difference(a, a) == [] and difference(a, Identity.from_json(a.to_json())) == []
    turned = [Difference(field, after, before) for field, before, after in difference(b, a)]
    assert difference(a, b) == turned
    other_code = dataclasses.replace(b, code=a.code, neutral=a.neutral)
    assert difference(a, b) == difference(a, other_code)
    same = (a.settings, a.inputs, a.parents) == (b.settings, b.inputs, b.parents)
    assert (difference(a, b) == []) == same


def test_options_of_rewards_are_neutral_where_they_change_no_score(tmp_path: Path) -> None:
    marked, counting = set(), set()
    for entry in CATALOG.values():
        for item in dataclasses.fields(entry.options):
            (marked if SPEED_ONLY.items() <= item.metadata.items() else counting).add(item.name)
    assert set(SPEED_OPTIONS) == marked and not marked & counting
    for place in ("reward_options", "scorer.options"):
        assert all(is_neutral(f"{place}.wer_whisper.{name}", "align") for name in marked)
        assert not any(is_neutral(f"{place}.wer_whisper.{name}", "align") for name in counting)

    def run(device: str, beam: int) -> AlignRun:
        options = {"wer_whisper": {"device": device, "beam": beam}}
        config = dataclasses.replace(align_config(), reward_options=options)
        return dataclasses.replace(whole, config=config, scorer=(name, {**given, "options": options}))

    whole = align_run(write_world(tmp_path / "world"), tmp_path / "align", align_config())
    name, given = whole.scorer
    before, elsewhere, other = run("cuda", 1), run("cpu", 1), run("cuda", 2)
    assert difference(before.depends(), elsewhere.depends()) == []
    assert before.recipe_hash() == elsewhere.recipe_hash() != other.recipe_hash()
    assert {each.field for each in difference(before.depends(), other.depends())} == {
        "reward_options.wer_whisper.beam",
        "scorer.options.wer_whisper.beam",
    }


def test_a_field_that_became_neutral_is_no_difference_to_an_earlier_identity() -> None:
    before = Identity(settings={"lr": 0.1, "device": "cpu"})
    after = Identity(settings={"lr": 0.1}, neutral={"device": "cuda"})
    assert difference(before, after) == difference(after, before) == []
    assert difference(before, after, ("neutral",)) == [("device", None, "cuda")]


def test_a_difference_names_the_field_with_both_values() -> None:
    a = Identity(settings={"lr": 0.1, "gone": 1}, inputs={"x": "1" * 16}, code={"f.py": "1"})
    b = Identity(settings={"lr": 0.2}, inputs={"x": "2" * 16}, code={"f.py": "2"})
    assert difference(a, b) == [("gone", 1, None), ("lr", 0.1, 0.2), ("inputs.x", "1" * 16, "2" * 16)]
    assert list(map(str, difference(a, b))) == [
        "gone 1 -> nothing",
        "lr 0.1 -> 0.2",
        "inputs.x 11111111 -> 22222222",
    ]
    assert difference(a, b, ("code",)) == [("code.f.py", "1", "2")]
    assert difference(a, dataclasses.replace(b, code={}), ("code",)) == []  # unknown code is no difference


@pytest.fixture
def run(tmp_path: Path) -> StageRun:
    return StageRun(
        config=config(), stage="stage1", latents=write_latents(tmp_path / "latents"), out=tmp_path / "run"
    )


def as_before(run: StageRun | AlignRun, drop: str = "") -> None:
    """A folder whose run.json has the facts alone, without an identity; it does not know `drop`."""
    run.out.mkdir(parents=True, exist_ok=True)
    write_json(run.out / IDENTITY, run.identity())
    run.save()
    if drop:
        resolved = json.loads((run.out / "resolved.json").read_text())
        del resolved["config"][drop]
        write_json(run.out / "resolved.json", resolved)
    pretend_state(run.out, 2)


def changed(run: StageRun, **fields: Any) -> StageRun:
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **fields))


def test_a_folder_of_an_earlier_version_goes_on_and_is_held_to_its_fields(run: StageRun) -> None:
    as_before(run, drop="shuffle_shards")
    assert verdict_of(run).action == "resume" and verdict_of(run).said() == ""
    neutral = verdict_of(changed(run, log_every=7))
    assert (neutral.action, neutral.said()) == ("resume", "log_every 1 -> 7")
    found = verdict_of(changed(run, shuffle_shards=5, seed=2))
    assert found.action == "refuse" and found.counting == (("seed", 0, 2), ("shuffle_shards", 16, 5))
    claim(run)
    assert recorded(run.out, run) == run.depends()


def test_a_refusal_names_every_field_and_what_was_there_stays(run: StageRun) -> None:
    check_run_folder(run)
    pretend_state(run.out, 2)
    before = (run.out / IDENTITY).read_text()
    with pytest.raises(
        ValueError, match=r"^[^\n]*\(ema_decay 0.999, asked for 0.5, seed 0, asked for 3\)[^\n]*$"
    ):
        check_run_folder(changed(run, seed=3, ema_decay=0.5))
    assert (run.out / IDENTITY).read_text() == before
    (run.out / IDENTITY).unlink()
    with pytest.raises(ValueError, match="nothing is known of the training there"):
        check_run_folder(run)


def test_going_on_all_the_same_is_recorded_with_both_values(run: StageRun) -> None:
    check_run_folder(run)
    pretend_state(run.out, 2)
    claim(dataclasses.replace(changed(run, seed=3), anyway=True, code={"a.py": "2"}))
    record = json.loads((run.out / IDENTITY).read_text())
    assert record["resumed"] == [{"step": 2, "as": "resume-anyway", "changes": [["seed", 0, 3]]}]
    assert verdict_of(changed(run, seed=3)).action == "resume"


def test_an_alignment_is_compared_by_what_its_paths_hold(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    run = align_run(world, tmp_path / "align", align_config())
    weights = tmp_path / "a" / "weights.bin"
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "weights.bin").write_bytes(b"same")
    named = dataclasses.replace(run, scorer=(run.scorer[0], {**run.scorer[1], "model": str(weights)}))
    as_before(named)
    moved = dataclasses.replace(
        named, scorer=(run.scorer[0], {**run.scorer[1], "model": str(tmp_path / "b" / "weights.bin")})
    )
    assert verdict_of(moved).action == "resume"
    smaller = dataclasses.replace(
        moved, config=moved.config.with_phase("nft", micro_batch=2, rollout_batch=3)
    )
    assert {change.field for change in verdict_of(smaller).neutral} == {
        "nft.micro_batch",
        "nft.rollout_batch",
    }
    (tmp_path / "b" / "weights.bin").write_bytes(b"other")
    claim(named)
    assert [change.field for change in verdict_of(moved).counting] == ["scorer.model"]
    longer = dataclasses.replace(named, config=named.config.with_phase("nft", rounds=9))
    assert verdict_of(longer).action == "extend" and longer.extends(finished=True) == ()


def test_a_path_counts_by_its_content_and_other_text_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "codec"
    folder.mkdir()
    (folder / "part").write_text("1")
    plain = by_content(str(folder))
    (folder / "config.json").write_text('{"codec_id": "abc"}')
    assert by_content(str(folder)) == "abc" != plain
    assert by_content("openai/whisper-tiny") == "openai/whisper-tiny" and by_content(3) == 3
    assert by_content(str(tmp_path / "gone" / "name.bin")) == "name.bin"


def test_split_keeps_every_setting_once() -> None:
    whole = flat(to_json(config()))
    counting, neutral = split(whole, "pretrain")
    assert {**counting, **neutral} == whole and not counting.keys() & neutral.keys()
    assert split(whole, "generate") == (whole, {})

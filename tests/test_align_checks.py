"""What is refused before an alignment loads its model, and what a rubric file becomes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from align_world import align_run, config, write_world
from own_alignment import prompts, recipe, row, rubric
from test_align_pairs import dpo, made_clips, made_pairs

from experiments.alignment.checks import check_codec, check_model, check_pairs, other_base
from experiments.alignment.inputs import AlignInputs, check_lora
from experiments.alignment.inputs import align_run as inputs_run
from experiments.alignment.rubric import with_rubric
from experiments.alignment.rubric_checks import check_floors, check_prompt_blind, unscored_rows
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.scoring.config import read_rubric
from finetune.adapters import Adapter, read_adapter, save_adapter
from finetune.advantage import AdvantageConfig, Floor
from finetune.align_run import AlignRun
from finetune.gsb.pairs import write_pairs
from finetune.lora import DEFAULT, LoraConfig, adapter_parameters, inject
from finetune.objectives.base import RolloutPlan
from finetune.objectives.grpo import GrpoConfig
from finetune.objectives.gsb_dpo import AxisWeights, GsbDpoConfig, TieRates
from finetune.objectives.nft import Nft, NftPhase
from finetune.prompts import PromptSet
from finetune.recipe import AlignConfig, RubricConfig
from finetune.rollout_store import write_store
from finetune.room import align_ways
from finetune.sde import Kernel, StochasticSteps
from pretrain.codecs.load import load_codecs
from pretrain.flow.reuse import FeatureCacheConfig
from pretrain.model.checkpoint import load_model, read_model_folder
from pretrain.prompt import read_prompts
from rewards.catalog import CATALOG
from rewards.traits import missing, modality, reads_prompt


class Blind:
    """A plug-in that says that it does not read the prompt and is better when lower."""

    name, reads_prompt, lower_is_better, picture = "blind", False, True, False

    def score(self, clips: list) -> list:
        return [1.0 for _ in clips]


class Silent:
    """A plug-in that says nothing."""

    name = "silent"

    def score(self, clips: list) -> list:
        return [1.0 for _ in clips]


class Stepping(Nft):
    """A plug-in that asks for stochastic steps."""

    name = "stepping"

    def rollout(self) -> RolloutPlan:
        return self._plan(stochastic=StochasticSteps(kernel=Kernel(), window=1, first_steps=2))


BLIND, SILENT = "test_align_checks:Blind", "test_align_checks:Silent"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    rows, clips = made_clips(folder)
    base, codecs = read_model_folder(folder / "base"), load_codecs(folder / "codec")
    facts = {"codec_id": codecs.codec_id, "checkpoint_id": base.facts["checkpoint_id"]}
    write_store(folder / "store", rows, clips, facts)
    write_pairs(folder / "pairs.jsonl", made_pairs(folder))
    return folder


def run_of(world: Path, tmp_path: Path) -> AlignRun:
    run = align_run(world, tmp_path, config())
    return dataclasses.replace(run, pairs=world / "pairs.jsonl", clips=world / "store")


def test_an_own_run_is_read_back_and_an_older_file_too(world, tmp_path):
    run = dataclasses.replace(
        run_of(world, tmp_path), held_out=world / "prompts.jsonl", adapter=tmp_path / "adapter"
    )
    path = run.save()
    assert AlignRun.load(path) == run
    values = json.loads(path.read_text())
    del values["held_out"], values["adapter"]
    path.write_text(json.dumps(values))
    assert AlignRun.load(path) == dataclasses.replace(run, held_out=None, adapter=None)


def test_held_out_prompts_and_adapter_are_part_of_what_a_run_is(world, tmp_path):
    run = run_of(world, tmp_path)
    folder = adapter_of(world, tmp_path / "adapter")
    identities = [
        each.identity()
        for each in (
            run,
            dataclasses.replace(run, held_out=world / "prompts.jsonl"),
            dataclasses.replace(run, adapter=folder),
        )
    ]
    assert len({json.dumps(identity) for identity in identities}) == 3


def adapter_of(world: Path, folder: Path, base_id: str = "", rank: int = 4) -> Path:
    model, described = load_model(world / "base")
    lora = dataclasses.replace(config().lora, rank=rank)
    inject(model, lora)
    base_id = base_id or str(described.facts["checkpoint_id"])
    tensors = {name: value.detach() for name, value in adapter_parameters(model, DEFAULT).items()}
    save_adapter(folder, tensors, Adapter(flavor="debug", base_id=base_id, config=lora))
    return folder


def test_an_adapter_of_another_model_is_refused(world, tmp_path):
    run = dataclasses.replace(run_of(world, tmp_path), adapter=adapter_of(world, tmp_path / "a"))
    assert check_model(run).flavor == "debug"
    other = dataclasses.replace(run, adapter=adapter_of(world, tmp_path / "b", "another"))
    with pytest.raises(ValueError, match="another"):
        check_model(other)


def test_a_run_from_an_adapter_holds_the_base_as_asked_and_refuses_other_shapes(world, tmp_path):
    folder = adapter_of(world, tmp_path / "adapter")  # rank 4, base fp32
    given, default = recipe(), recipe().align.lora
    asked = dataclasses.replace(default, rank=64, alpha=7.0, base="nf4")
    made = dataclasses.replace(given, align=dataclasses.replace(given.align, lora=asked))
    inputs = AlignInputs(model=world / "base", codec=world / "codec", prompts=world / "p", adapter=folder)
    run = inputs_run(StageJob(recipe=made, layout=Layout(out=tmp_path), nproc=1), None, inputs)
    lora = read_adapter(folder)[0].config
    assert run.config.lora == dataclasses.replace(lora, base="nf4") and lora.base == "fp32"
    assert not [way for way in align_ways(run) if "lora.base" in way]  # it has effect: not advised again
    assert other_base(run) == [
        f"{folder}: trained on a base held in fp32; here it is held in nf4 (align.lora.base)"
    ]
    assert other_base(dataclasses.replace(run, config=made.align)) and not other_base(run_of(world, tmp_path))

    check_lora(dataclasses.replace(lora, base="nf4"), default, folder)
    check_lora(LoraConfig(rank=64, alpha=128.0), LoraConfig(rank=64, alpha=128.0), folder)  # a recipe's own
    for name, value, said in (
        ("rank", 64, "rank 64, but the adapter .* has 4;"),
        ("targets", ("heads",), r"targets \[heads\], but the adapter .* has \[self_attention, "),
        ("alpha", 7.0, "alpha 7.0, but the adapter .* has 8"),
        ("rslora", True, "rslora true, but the adapter .* has false;"),
    ):
        with pytest.raises(ValueError, match=rf"align\.lora\.{said}.* set it to "):
            check_lora(dataclasses.replace(default, **{name: value}), default, folder)


def test_missing_weights_are_named_before_anything_is_loaded(world, tmp_path):
    run, empty = run_of(world, tmp_path), tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((world / "base" / "config.json").read_bytes())
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        check_model(dataclasses.replace(run, base=empty))


def test_a_codec_of_another_text_width_or_training_is_refused(world, tmp_path):
    run, codecs, described = (
        run_of(world, tmp_path),
        load_codecs(world / "codec"),
        read_model_folder(world / "base"),
    )
    check_codec(run, codecs, described)
    wider = dataclasses.replace(described, args=dataclasses.replace(described.args, text_width=512))
    with pytest.raises(ValueError, match=r"codec: text of width 256, but .*base \(debug\) takes 512"):
        check_codec(run, codecs, wider)
    with pytest.raises(ValueError, match="trained on latents of codec other"):
        check_codec(run, codecs, dataclasses.replace(described, facts={"codec_id": "other"}))


def test_pairs_of_another_model_and_of_held_out_prompts_are_refused(world, tmp_path):
    run, codecs, described = (
        run_of(world, tmp_path),
        load_codecs(world / "codec"),
        read_model_folder(world / "base"),
    )
    unseen = PromptSet((), tuple(read_prompts(prompts(tmp_path / "h.jsonl", [row("h0", "nothing")]))))
    check_pairs(run, codecs, unseen, described)
    other = dataclasses.replace(described, facts={"checkpoint_id": "0123"})
    base_id = described.facts["checkpoint_id"]
    with pytest.raises(ValueError, match=rf"store: clips of model {base_id}, but .*base is 0123"):
        check_pairs(run, codecs, unseen, other)
    same_id = [{**row("p0", "nothing"), "spk_wavs": []}]
    same_text = [row("h0", "nothing"), {**row("h1", "two"), "spk_wavs": []}]
    for rows, line in ((same_id, 1), (same_text, 2)):
        held = tuple(read_prompts(prompts(tmp_path / "held.jsonl", rows)))
        given = dataclasses.replace(run, held_out=tmp_path / "held.jsonl")
        with pytest.raises(ValueError, match=rf"pairs.jsonl: pair \d+ \(case 'p[01]'\).*held.jsonl:{line},"):
            check_pairs(given, codecs, PromptSet((), held), described)


def test_pairs_that_the_loss_cannot_learn_from_are_refused(world, tmp_path):
    codecs, described = load_codecs(world / "codec"), read_model_folder(world / "base")

    def check(**changes: Any) -> None:
        made = config(("nft", "gsb_dpo"), phases={"gsb_dpo": dpo(**changes)})
        run = dataclasses.replace(run_of(world, tmp_path), config=made)
        check_pairs(run, codecs, PromptSet((), ()), described)

    check()
    check(tie_rates_from_pairs=False, objective=GsbDpoConfig(ties="drop"))
    rates = TieRates(voice=0.2, picture=0.5, overall=0.1, sync=0.1)
    check(tie_rates_from_pairs=False, objective=GsbDpoConfig(tie_rates=rates))
    weights = AxisWeights(voice=0.0, picture=0.0, overall=0.0)  # nobody said Same about sync
    check(tie_rates_from_pairs=False, objective=GsbDpoConfig(weights=weights))
    said = r"pairs.jsonl: \d+% of the labels of \w+ are Same.*tie rate 0; set gsb_dpo.objective.tie_rates"
    with pytest.raises(ValueError, match=said):
        check(tie_rates_from_pairs=False)
    with pytest.raises(ValueError, match=r"20 pairs, but a round takes 96"):
        check(pairs_per_round=96)


def test_an_objective_that_does_not_fit_the_rubric_or_its_sampler_is_refused():
    joint = dataclasses.replace(config().phases["grpo"], objective=GrpoConfig(routed=False))  # pyright: ignore
    apart, both = RubricConfig(audio={"warm": 1.0}, sync={"x": 1.0}), RubricConfig(audio={}, sync={"x": 1.0})
    mixed = dataclasses.replace(apart, advantage=AdvantageConfig(routed=False))
    with pytest.raises(ValueError, match=r"grpo.objective.routed=false.*but warm is about audio alone; set"):
        config(("nft", "grpo"), phases={"grpo": joint}, rubric=apart).check_ranks(1)
    for fits in (both, mixed):
        config(("nft", "grpo"), phases={"grpo": joint}, rubric=fits).check_ranks(1)
    config(("nft",), phases={"grpo": joint}, rubric=apart).check_ranks(1)
    config(("nft", "grpo"), rubric=apart).check_ranks(1)
    cached = dataclasses.replace(config().deployed, cache=FeatureCacheConfig(sigma_drop=0.1))
    stepping = config(("nft", "test_align_checks:Stepping"), phases={"stepping": NftPhase(sampler=cached)})
    with pytest.raises(ValueError, match="a likelihood ratio needs the velocity of every step"):
        stepping.check_ranks(1)


def read(tmp_path: Path, content: Any, base: AlignConfig | None = None) -> AlignConfig:
    return with_rubric(base or AlignConfig(), read_rubric(rubric(tmp_path / "rubric.yaml", content)))


def test_a_rubric_file_becomes_the_recipes_rubric(tmp_path):
    items = {
        "wer_pocketsphinx": {"weight": -2.0, "floor": 0.5},
        "sim_resemblyzer": {"weight": 0.5, "floor": 0.4, "below": "nan"},
        "sync_mini": {"weight": 1.0, "route": "video"},
        "identity_colour_edge": {"weight": 0.25},
        "syncnet": {},
        "sync_judge": {"weight": 0},
        BLIND: {"weight": -1.0},
    }
    options = {"wer_pocketsphinx": {"vocabulary": ["one"]}, "sync_judge": {"margin": 0.5}}
    base = dataclasses.replace(
        AlignConfig(),
        reward_options={"wer_pocketsphinx": {"num_processes": 2}},
        guardrails={"min_motion": 0.1, "max_lufs": -6.0},
    )
    found = read(tmp_path, {"items": items, "options": options, "guardrails": {"max_lufs": -8}}, base)
    assert found.rubric.video == {"sync_mini": 1.0, "identity_colour_edge": 0.25}
    assert found.rubric.audio == {"wer_pocketsphinx": 2.0, "sim_resemblyzer": 0.5, BLIND: 1.0}
    assert found.rubric.sync == {"syncnet": 1.0} and found.rubric.watched == ("sync_judge",)
    assert found.rubric.floors == {
        "wer_pocketsphinx": Floor(floor=-0.5),
        "sim_resemblyzer": Floor(floor=0.4, below="nan"),
    }
    assert found.reward_options == {
        "wer_pocketsphinx": {"num_processes": 2, "vocabulary": ["one"]},
        "sync_judge": {"margin": 0.5},
    }
    assert found.guardrails == {"min_motion": 0.1, "max_lufs": -8}


def test_a_plug_in_that_says_nothing_is_higher_better_on_both_routes(tmp_path):
    assert read(tmp_path, {"items": {SILENT: {}}}).rubric.sync == {SILENT: 1.0}
    with pytest.raises(ValueError, match="a class that is better when lower says lower_is_better"):
        read(tmp_path, {"items": {SILENT: {"weight": -1}}})


@pytest.mark.parametrize(
    ("weights", "refused"),
    [
        ({"snr_estimate_db": 1.0, "sync_mini": 1.0}, True),
        ({BLIND: 1.0}, True),
        ({SILENT: 1.0}, False),
        ({"sync_mini": 1.0, "sim_resemblyzer": 0.1}, False),
    ],
)
def test_rewards_that_all_see_the_clip_alone_are_refused_unless_told(weights, refused):
    told = config(rubric=RubricConfig(audio=weights, sync={}, allow_prompt_blind=True))
    check_prompt_blind(told, {})
    untold = config(rubric=RubricConfig(audio=weights, sync={}))
    if not refused:
        check_prompt_blind(untold, {})
        return
    with pytest.raises(ValueError, match=r"and not its prompt.*align.rubric.allow_prompt_blind=true"):
        check_prompt_blind(untold, {})


def test_a_floor_whose_sign_was_not_turned_is_refused():
    wrong = RubricConfig(
        audio={"wer_pocketsphinx": 1.0}, sync={}, floors={"wer_pocketsphinx": Floor(floor=0.5)}
    )
    with pytest.raises(ValueError, match=r"floors.wer_pocketsphinx.floor: lower is better.*give -0.5"):
        check_floors(config(rubric=wrong))


def test_routes_follow_what_rewards_see():
    assert {name for name in CATALOG if modality(name) == "video"} == {
        "picture_noise_judge",
        "identity_colour_edge",
    }
    assert modality("sync_mini") == modality("syncnet") == modality(SILENT) == "both"
    assert modality("wer_whisper") == modality("sim_redimnet") == modality(BLIND) == "audio"
    assert {name for name in CATALOG if name != "preference" and not reads_prompt(name)} == {
        "snr_estimate_db",
        "picture_noise_judge",
        "sync_mini",
        "sync_judge",
        "lip_loudness_correlation",
        "syncnet",
        "audiobox_pq",
    }


def test_rows_that_some_rewards_cannot_score_are_counted(tmp_path):
    boxes = {"meta": {"mouth_boxes": [[0, 0, 8, 8]]}}
    given = [row("a", "one"), row("b", "two", spk_wavs=[]), row("c", "three", spk_wavs=[], **boxes)]
    path = prompts(tmp_path / "p.jsonl", given)
    rows = read_prompts(path)
    told = unscored_rows(["wer_pocketsphinx", "sim_resemblyzer", "sync_mini"], path, rows)
    assert [notice.partition("p.jsonl: reward ")[2] for notice in told] == [
        "sim_resemblyzer does not apply to 2 of 3 prompts, which have not a reference voice (spk_wavs) "
        "(first line 2)",
        "sync_mini does not apply to 2 of 3 prompts, which have not meta.mouth_boxes (first line 1)",
    ]
    with pytest.raises(ValueError, match=r"p.jsonl:2: no reward of the rubric can score this prompt"):
        unscored_rows(["sim_resemblyzer", "sync_mini"], path, rows)
    with pytest.raises(ValueError, match=r"p.jsonl: reward identity_colour_edge can score none of the 3"):
        unscored_rows(["wer_pocketsphinx", "identity_colour_edge"], path, rows)


@pytest.mark.parametrize(
    ("name", "what"),
    [("fd_verse_bench", "a real recording"), ("voice_accuracy_resemblyzer", "meta.voices"), (SILENT, "")],
)
def test_what_a_prompt_lacks_is_said(name, what, tmp_path):
    from experiments.scoring.latents import prompt_clip

    found = missing(name, prompt_clip(read_prompts(prompts(tmp_path / "p.jsonl", [row("a", "one")]))[0]))
    assert found.startswith(what) and bool(found) == bool(what)

"""From two models' rollouts to a survey, its votes, pairs that train, and back: lineage names the survey."""

import dataclasses
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from align_world import config, write_world
from own_alignment import arguments, write_inputs
from voting_world import RaterClient, served

from experiments.alignment.checks import check_pairs
from experiments.alignment.inputs import pairs_and_clips
from experiments.cli import main
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline.rollout import RolloutInputs, add_media, rollout_of
from experiments.pipeline.votes import SurveyVotesConfig, VotesConfig
from experiments.recipes.base import Recipe
from experiments.runs import lineage
from experiments.stages import run_stage
from experiments.voting.database import open_database
from experiments.voting.sets import read_cases
from experiments.voting.survey import SurveyConfig, add_survey
from finetune.joined_store import join_stores, makers
from finetune.make_rollouts import RolloutsConfig
from finetune.pair_batches import open_pairs
from finetune.recipe import RubricConfig, StopConfig
from finetune.rollout_store import open_store
from pretrain.files import sha256_of


@pytest.fixture(autouse=True)
def nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def rolled_out(world: Path, name: str, seed: int) -> Path:
    sizes = config(stop=StopConfig(prompts=2))
    made = RolloutsConfig(clips_per_prompt=2, bf16=False, sampler=sizes.deployed, seed=seed)
    inputs = RolloutInputs(
        config=made,
        sizes=sizes,
        model=world / "base",
        codec=world / "codec",
        prompts=world / "prompts.jsonl",
        out=world / name,
    )
    rollout_of(inputs)
    add_media(world / name, world / "codec")
    return world / name


def vote_on(store: Path, place: Path, name: str = "survey", simulated: bool = False) -> None:
    """A survey of a joined store, voted through by two raters by chance."""
    engine = open_database(str(place / "votes.db"))
    cases = read_cases([(None, store)])
    values = SurveyConfig(models=tuple(sorted(cases[0].clips)), ours="new", per_rater=8, simulated=simulated)
    add_survey(engine, name, values, cases, place / "files")
    engine.dispose()
    with served(place) as world, httpx.Client(timeout=60) as client:
        rng = np.random.default_rng(0)
        for link in world.links(2, name):
            RaterClient(link, client).vote_all(rng, world)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """old/ and new/, stores of the same eight prompts, both/ of their first clips, and a survey of it."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    old, new = rolled_out(folder, "old", 0), rolled_out(folder, "new", 1)
    join_stores([("old", old), ("new", new)], folder / "both")
    vote_on(folder / "both", folder)
    return folder


def test_a_joined_store_has_the_latents_and_files_of_both(world):
    stores = {name: open_store(world / name) for name in ("old", "new", "both")}
    both = stores["both"]
    assert len(both.places) == 16 and {row["model"] for row in both.places.values()} == {"old", "new"}
    for clip, row in both.places.items():
        source = stores[row["model"]]
        origin = f"{row['case_id']}-k0"
        assert clip == f"{row['case_id']}-{row['model']}"
        assert torch.equal(both.rollout([clip]).video, source.rollout([origin]).video)
        assert torch.equal(both.rollout([clip]).audio, source.rollout([origin]).audio)
        assert sha256_of(world / "both" / row["video"]) == row["video_sha256"]
        assert row["sha256"] == source.places[origin]["sha256"]
    assert makers(both.facts) == makers(stores["old"].facts) != set()


def test_several_clips_of_each_model_are_numbered(world, tmp_path):
    made = join_stores([("a", world / "old"), ("b", world / "new")], tmp_path / "s", clips_per_prompt=2)
    assert {row["model"] for row in made.places.values()} == {"a#0", "a#1", "b#0", "b#1"}
    assert len(made.places) == 32


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([("a", "old")], "two or more models"),
        ([("a", "old"), ("a", "new")], "names of their own"),
        ([("a/b", "old"), ("c", "new")], "leave out slashes"),
        ([("a", "old"), ("b", "codec")], "no such file"),
    ],
)
def test_what_cannot_be_joined_is_refused(world, tmp_path, sources, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        join_stores([(name, world / path) for name, path in sources], tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codec_id": "other"}, "codec_id other"),
        ({"video_hz": 99.0}, "video_hz 99.0"),
    ],
)
def test_stores_of_another_kind_are_refused(world, tmp_path, changes, said):
    other = tmp_path / "other"
    other.mkdir()
    facts = json.loads((world / "new" / "store.json").read_text())
    (other / "store.json").write_text(json.dumps({**facts, **changes}))
    (other / "index.jsonl").write_text((world / "new" / "index.jsonl").read_text())
    with pytest.raises(ValueError, match=said):
        join_stores([("a", world / "old"), ("b", other)], tmp_path / "s")


def test_other_prompts_and_too_few_clips_are_refused(world, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "store.json").write_text((world / "new" / "store.json").read_text())
    index = (world / "new" / "index.jsonl").read_text()
    (other / "index.jsonl").write_text(index.replace("A man says", "A woman says"))
    with pytest.raises(ValueError, match="another prompt than in"):
        join_stores([("a", world / "old"), ("b", other)], tmp_path / "s")
    with pytest.raises(ValueError, match=r"2 clips of .*, 3 are wanted"):
        join_stores([("a", world / "old"), ("b", world / "new")], tmp_path / "s", 3)


def stage(world: Path, out: Path, **survey: str) -> StageJob:
    given = {"place": str(world / "votes.db"), "clips": str(world / "both"), **survey}
    votes = VotesConfig(survey=SurveyVotesConfig(**given))
    align = config(("gsb_dpo",), rubric=RubricConfig(audio={"sim_resemblyzer": 1.0}))
    recipe = dataclasses.replace(Recipe(name="own"), align=align, votes=votes)
    return StageJob(recipe=recipe, layout=Layout(out=out))


def test_the_votes_stage_makes_pairs_of_a_survey_which_alignment_takes(world, tmp_path):
    job = stage(world, tmp_path / "out")
    run_stage("votes", job)
    pairs, clips = pairs_and_clips(job)
    assert pairs is not None and clips is not None
    assert pairs == tmp_path / "out" / "votes" / "pairs.jsonl"
    assert clips == tmp_path / "out" / "votes" / "clips"
    source = open_pairs(pairs, open_store(clips), 8)
    assert len(source.pairs) == 8 and not any(pair.simulated for pair in source.pairs)
    assert source.batch(source.pairs[:2]).first.video.isfinite().all()
    summary = json.loads((tmp_path / "out" / "votes" / "summary.json").read_text())
    assert (summary["survey"], summary["pairs"], summary["simulated"]) == ("survey", 8, False)
    record = json.loads((tmp_path / "out" / "runs" / "votes.json").read_text())
    assert record["config"]["survey"]["name"] == "survey"


def test_lineage_of_the_stage_names_the_survey_and_no_person(world, tmp_path, capsys):
    run_stage("votes", stage(world, tmp_path / "out"))
    found = lineage.trace(str(tmp_path / "out" / "votes" / "pairs.jsonl"), Layout(), tmp_path)
    lineage.show(found)
    said = capsys.readouterr().out
    assert "votes of survey survey" in said and "rater-0" not in said
    events = next((tmp_path / "out" / "tracking").glob("*votes*")) / "events.jsonl"
    assert "rater-0" not in events.read_text() and "nava.survey_inputs" in events.read_text()


@pytest.mark.parametrize(
    ("survey", "said"),
    [
        ({"name": "other"}, "--survey other: unknown"),
        ({"place": "nowhere.db"}, "nowhere.db: no such file"),
        ({"clips": "nowhere"}, "nowhere.*no such file"),
    ],
)
def test_a_survey_that_is_not_there_leaves_what_was_there(world, tmp_path, survey, said):
    kept = tmp_path / "out" / "votes" / "pairs.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("before")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run_stage("votes", stage(world, tmp_path / "out", **survey))
    assert kept.read_text() == "before"


def test_votes_on_other_clips_than_the_stores_are_refused(world, tmp_path):
    join_stores([("old", world / "new"), ("new", world / "old")], tmp_path / "swapped")
    with pytest.raises(ValueError, match=r"left_sha256: .* is not .* of the clip in the index"):
        run_stage("votes", stage(world, tmp_path / "out", clips=str(tmp_path / "swapped")))


@pytest.mark.parametrize(
    "values",
    [{"place": "votes.db"}, {"clips": "x"}, {"place": "postgresql://u:word@h/d", "clips": "x"}],
)
def test_settings_that_cannot_be_meant(values):
    with pytest.raises(ValueError, match=r"votes\.survey") as refused:
        SurveyVotesConfig(**values)
    assert "word" not in str(refused.value).replace("password", "")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lineage_leads_from_an_aligned_model_to_the_survey(tmp_path, capsys):
    """The whole way by the verbs: rollouts, join, serve, export, align, lineage."""
    inputs = write_inputs(tmp_path / "inputs")
    common = ["--codec", inputs / "codec", "--prompts", inputs / "prompts.jsonl", "--model", inputs / "model"]
    small = ["rollout.clips_per_prompt=2", "rollout.sampler.steps=2", "align.stop.prompts=0"]
    for seed, name in enumerate(("old", "new")):
        sets = [part for text in (*small, f"rollout.seed={seed}") for part in ("--set", text)]
        assert run("rollout", "own_alignment.recipe", *common, "--to", name, "--mp4", *sets) == 0
    assert run("gsb", "join", "old=old", "new=new", "--to", "both") == 0
    vote_on(Path("both"), tmp_path, "spring", simulated=True)
    exported = ["votes.jsonl", "--survey", "votes.db", "--clips", "both", "--out", "pairs.jsonl"]
    assert run("gsb", "export", *exported) == 0
    given = arguments(inputs, tmp_path / "to", pairs="pairs.jsonl", clips="both")
    assert run(*given, "--set", "align.sequence=[gsb_dpo]", "--no-report") == 0
    capsys.readouterr()
    assert run("lineage", tmp_path / "to" / "model") == 0
    said = capsys.readouterr().out
    assert "votes of survey spring of new, old" in said
    assert "join" in said and "rollout" in said and "rater-0" not in said
    # an alignment that did not know where the pairs came from, as one with another --out
    for events in (tmp_path / "out" / "tracking").glob("*-align*/events.jsonl"):
        rows = [json.loads(line) for line in events.read_text().splitlines()]
        events.write_text("".join(json.dumps({**row, "parents": {}}) + "\n" for row in rows))
    assert run("lineage", tmp_path / "to" / "model") == 0
    assert "votes of survey spring of new, old" in capsys.readouterr().out


def run(*given: object) -> int:
    return main([str(part) for part in given]) or 0


def test_pairs_of_clips_of_other_models_than_the_base_are_refused(world, monkeypatch, tmp_path):
    """Of a joined store one model has to be the one that learns."""
    from types import SimpleNamespace

    store = world / "both"
    described = SimpleNamespace(facts={"checkpoint_id": "another"})
    run_of = SimpleNamespace(pairs=tmp_path, clips=store, base="base", codec=world / "codec")
    with pytest.raises(ValueError, match="votes teach only a model whose clips they are about"):
        check_pairs(run_of, None, None, described)  # type: ignore[arg-type]

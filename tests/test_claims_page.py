"""The claims' registry, the table that its scores give, and the page that is made of the JSON alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.guidance import DIRECTIONS, NONE
from experiments.studies.claims.one_unit import COST, core_seconds, spent
from experiments.studies.claims.plot import draw
from experiments.studies.claims.registry import GIVEN, Claim, Contrast
from experiments.studies.claims.run import METRICS, ClaimsRecipe, _found, all_claims, metrics_of, study_claims
from experiments.studies.claims.tabulate import higher_is_better, tabulate
from experiments.studies.claims.trainings import Trainings
from experiments.studies.claims.units import ClaimUnits
from experiments.studies.page import render
from pretrain.config import to_json
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.generation.config import GenerateConfig
from pretrain.recipe import PretrainConfig

CONFIG = ClaimsConfig(noise_seeds=2, num_prompts=20, scales=(1.0, 4.0), resamples=200)
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CLAIMS = all_claims(CONFIG, load_recipe("mini").pretrain)


@pytest.fixture
def units(tmp_path) -> ClaimUnits:
    trainings = Trainings(CONFIG, PretrainConfig(), tmp_path / "latents", tmp_path / "runs", {})
    rows = [{"prompt": f"Say <S>{WORDS[number // 2]}<E>.", "data_id": str(number)} for number in range(20)]
    (tmp_path / "pretrain_seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ClaimUnits(CONFIG, GenerateConfig(), trainings, "0123", {"judge": "x"}, tmp_path)


def write(units: ClaimUnits, claim: Claim, gain: float, samplings: set[str], seeds=range(2)) -> None:
    """Scores of 20 clips; every metric of a guided sampling is `gain` beside that of none."""
    for seed in seeds:
        for cell in claim.cells:
            if cell[1] in samplings:
                unit, path = units.of(claim, cell, seed)
                noise = np.random.default_rng((seed, len(cell[1]))).normal(size=20) * 0.05
                values = noise + 0.5 + (0.0 if cell[1] == NONE else gain)
                content = {
                    "data_ids": [str(number) for number in range(20)],
                    "metrics": {name: [[float(value), 1.0] for value in values] for name in METRICS},
                    "reasons": {"sync_judge": ["", *["still mouth"] * 2, *[""] * 17]},
                }
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content))
                with spent(unit.folder, cell[1]):
                    pass


def page_of(table, units: ClaimUnits) -> str:
    study = {"study": "claims", "config": to_json(CONFIG), "inputs": {"model": "0123"}}
    found = _found(table, units, metrics_of(load_recipe("mini").score))
    return render(json.loads(json.dumps({**study, **found}, allow_nan=False)))


def test_every_row_names_a_measure_that_has_a_direction_and_a_section():
    assert len(CLAIMS) >= 15 and {f"guidance_{name}" for name in DIRECTIONS} <= set(CLAIMS)
    for name, claim in CLAIMS.items():
        assert "arXiv" in claim.where, name
        assert claim.measure in METRICS or claim.measure.startswith("validation/"), name
        assert isinstance(higher_is_better(claim.measure), bool)
        assert claim.cells[:2] == [claim.contrasts[0].theirs, claim.contrasts[0].ours]
    with pytest.raises(ValueError, match="no cell"):
        Claim("x", "y", "z", METRICS[0], (Contrast("a", ("b", "recipe"), ("c", "recipe")),))


def test_a_direction_alone_sets_its_own_scales_and_no_other():
    for name, direction in DIRECTIONS.items():
        claim = CLAIMS[f"guidance_{name}"]
        assert [cell[0] for cell in claim.cells] == [GIVEN] * 4
        assert claim.samplings[NONE] == NO_GUIDANCE
        guided = claim.samplings[f"{name} {direction.decides:g}"]
        assert guided is not None and claim.contrasts[0].ours[1] == f"{name} {direction.decides:g}"
        moved = {field for field in vars(guided) if getattr(guided, field) != 0}
        assert moved == set(direction.fields)
        assert {getattr(guided, field) for field in moved} == {direction.decides}


def test_cells_that_rows_share_are_run_once_with_the_noise_of_their_seed(units):
    three = [CLAIMS[f"guidance_{name}"] for name in DIRECTIONS]
    needed = units.needed(three)
    assert [unit.label for unit in needed] == ["given-seed0", "given-seed1"]
    assert [len(unit.samples) for unit in needed] == [1 + 3 * 3] * 2
    seeds = [{sampled.config.seed for sampled in unit.samples.values()} for unit in needed]
    assert seeds == [{0}, {1}]
    other = replace(units, scored={"judge": "y"}).needed(three)
    assert {*other[0].samples}.isdisjoint(needed[0].samples)  # other judges: scored again
    assert replace(units, model="4567").needed(three)[0].folder != needed[0].folder


def test_rows_without_scores_say_so_and_the_others_have_their_verdict(units):
    claim = CLAIMS["guidance_align"]
    write(units, claim, 0.2, {NONE, "align 2", "align 1"})
    table = tabulate(CLAIMS, units, set(), "mini")
    row = table["guidance_align"]
    assert (row["seeds"], row["verdict"], row["missing"]) == (2, "favours", ["4 against 0"])
    assert row["prompts"] == {"set": "pretrain_seen", "clips": 20, "distinct": 10}
    assert row["cells"][0]["metrics"]["sync_judge"]["n"] == 20
    assert row["core_hours"] >= 0 and row["unscored"] == {"sync_judge": {"still mouth": 12}}
    found = row["contrasts"][0]["differences"]
    assert found["sync_judge"]["mean"] == pytest.approx(0.2, abs=0.03)
    assert found["picture_noise_judge"]["verdict"] == "against"  # a cost elsewhere: lower is better
    assert table["guidance_text"]["seeds"] == 0
    page = page_of(table, units)
    assert page.count("0 seeds: not run") == len(CLAIMS) - 1
    assert "x 20 prompts of `pretrain_seen`, of 10 choices of words and voices. Each" in page
    assert "| **favours** |" in page and "Not run: 4 against 0." in page
    assert re.search(r"^\| align 2 \(decides\) \| \*\*", page, re.M)  # told apart from no guidance
    assert "`nava study claims mini --rows schedule_mixed`" in page


def test_the_page_follows_the_scores_and_nothing_else(units):
    claim = CLAIMS["guidance_align"]
    verdicts = {}
    for gain in (0.2, -0.2, 0.0):
        write(units, claim, gain, {NONE, "align 2"})
        table = tabulate({"guidance_align": claim}, units, set(), "mini")
        verdicts[gain] = page_of(table, units)
    assert "**favours**" in verdicts[0.2] and "**against**" not in verdicts[0.2]
    assert "**against**" in verdicts[-0.2]
    assert "**not told apart**; 0.0" in verdicts[0.0] and "could have been seen" in verdicts[0.0]


def test_a_seed_counts_when_the_deciding_cells_are_there(units):
    claim = CLAIMS["guidance_text"]
    write(units, claim, 0.1, {NONE, "text 2"}, seeds=[1])
    write(units, claim, 0.1, {NONE, "text 1"}, seeds=[0])
    row = tabulate({"guidance_text": claim}, units, set(), "mini")["guidance_text"]
    assert row["seeds"] == 1 and row["missing"] == ["1 against 0", "4 against 0"]


def test_cells_of_other_prompts_are_not_compared(units):
    claim = CLAIMS["guidance_text"]
    write(units, claim, 0.1, {NONE, "text 2"})
    _, path = units.of(claim, claim.cells[0], 0)
    path.write_text(path.read_text().replace('"0"', '"other"', 1))
    with pytest.raises(ValueError, match="claim guidance_text: its cells were scored on different prompts"):
        tabulate({"guidance_text": claim}, units, set(), "mini")


def test_the_picture_is_drawn_with_and_without_results(units, tmp_path):
    for name in ("none", "some"):
        table = tabulate(CLAIMS, units, set(), "mini")
        draw(_found(table, units, metrics_of(load_recipe("mini").score)), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        write(units, CLAIMS["guidance_text"], -0.2, {NONE, "text 2"})


def test_costs_add_up_over_attempts_also_of_those_that_failed(tmp_path):
    assert core_seconds(tmp_path / "none") == 0.0
    with spent(tmp_path, "one"):
        sum(range(2_000_000))
    with pytest.raises(OSError, match="no space"), spent(tmp_path, "two"):
        raise OSError("no space")
    rows = [json.loads(line) for line in (tmp_path / COST).read_text().splitlines()]
    assert [row["what"] for row in rows] == ["one", "two"]
    assert core_seconds(tmp_path) == pytest.approx(sum(row["core_seconds"] for row in rows))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_seeds": 0}, "claims.noise_seeds must be at least 1"),
        ({"steps_factor": 0.0}, "claims.steps_factor must be above 0"),
        ({"batch_factor": -1.0}, "claims.batch_factor must be above 0"),
        ({"scales": (1.0, 1.0)}, "claims.scales: expected distinct numbers"),
        ({"lr_factors": (0.5, 2.0)}, "the recipe's own rate, 1, is missing"),
    ],
)
def test_bad_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ClaimsConfig(**fields)


def test_what_is_missing_is_said_before_anything_runs(tmp_path):
    recipe = load_recipe("mini")
    sections = ClaimsRecipe("mini", recipe.claims, recipe.pretrain, recipe.generate)
    layout = Layout(out=tmp_path)
    with pytest.raises(ValueError, match="--rows: unknown row 'guidance_txt'; did you mean 'guidance_text'"):
        study_claims(sections, layout, tmp_path / "model", ["guidance_txt"])
    with pytest.raises(FileNotFoundError, match=r"codec/config\.json: .*nava codec"):
        study_claims(sections, layout, tmp_path / "model", ["guidance_text"])
    assert not list(Path(tmp_path).rglob("*"))

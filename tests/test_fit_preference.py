"""`nava gsb fit`: known weights come back from votes and scores on disk, whatever their order; what is wrong
is one line."""

import json
import random
import shutil

import numpy as np
import pytest
from gsb_votes import row, write

from experiments.cli import main
from experiments.scoring.rows import ScoresFile, read_scored
from rewards.preference import PreferenceModel

TRUE = {"sync_mini": 6.0, "snr_estimate_db": -0.1, "lip_loudness_correlation.peak": 0.0}  # logits per unit
SPREAD = {"sync_mini": 0.2, "snr_estimate_db": 10.0, "lip_loudness_correlation.peak": 0.3}
TIE, CASES, RATERS = 0.6, 300, 6
PULLS = (1.0, -0.6, 0.2, 0.4, 0.0, 0.8)


def scored(case, values, *, stage=False, source="generated", **more):
    """A row of `nava score`, or of the pipeline's stage `score`."""
    peak = {"peak": values["lip_loudness_correlation.peak"]}
    plain = {
        "sync_mini": values["sync_mini"],
        "snr_estimate_db": values["snr_estimate_db"],
        "sync_judge": 1.0,
    }
    if stage:
        scores, parts = {**plain, "lip_loudness_correlation": 0.5}, {"lip_loudness_correlation": peak}
        return {"data_id": case, "source": source, "prompt": case, "scores": scores, "parts": parts, **more}
    entries = {name: {"value": value, "reason": "", "parts": {}, "text": ""} for name, value in plain.items()}
    entries["lip_loudness_correlation"] = {"value": 0.5, "reason": "", "parts": peak, "text": ""}
    return {"clip": case, "path": f"{case}.mp4", "prompt": case, "scores": entries, **more}


def drawn(seed=0):
    """(scores of ours, scores of base, votes): three raters a pair, a logistic utility difference, Same below
    TIE."""
    rng = np.random.default_rng(seed)
    clips = {
        model: [{name: rng.normal(0, sd) for name, sd in SPREAD.items()} for _ in range(CASES)]
        for model in ("ours", "base")
    }
    votes = []
    for case in range(CASES):
        for rater in rng.choice(RATERS, 3, replace=False):
            left, right = rng.permutation(["ours", "base"]).tolist()
            gain = sum(
                weight * (clips[left][case][name] - clips[right][case][name]) for name, weight in TRUE.items()
            )
            latent = gain + PULLS[rater] + rng.logistic()
            choice = "tie" if abs(latent) <= TIE else "left" if latent > 0 else "right"
            side = "left" if left == "ours" else "right"
            votes.append(
                row(
                    choice,
                    user=f"u{rater}",
                    case=f"c{case}",
                    left=left,
                    right=right,
                    side=side,
                    simulated=True,
                )
            )
    ours = [scored(f"c{case}", values) for case, values in enumerate(clips["ours"])]
    base = [scored(f"c{case}", values, stage=True) for case, values in enumerate(clips["base"])]
    return ours, base, votes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files of `drawn`."""
    folder = tmp_path_factory.mktemp("world")
    for name, rows in zip(("ours", "base", "votes"), drawn(), strict=True):
        write(folder / f"{name}.jsonl", rows)
    return folder


def fit(folder, *options, features=tuple(TRUE), scores=None):
    given = scores or [f"ours={folder / 'ours.jsonl'}", f"base={folder / 'base.jsonl'}"]
    out = str(folder / "preference.json")
    arguments = [
        "gsb",
        "fit",
        str(folder / "votes.jsonl"),
        "--scores",
        *given,
        "--features",
        *features,
        "--out",
        out,
        *options,
    ]
    try:
        return main(arguments)
    except SystemExit as leave:
        return leave.code


def fails(capsys, folder, *options, **given):
    """The one line a user reads; no model is written."""
    (folder / "preference.json").unlink(missing_ok=True)
    assert fit(folder, *options, **given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (folder / "preference.json").exists()
    return error


def small(folder, **changed):
    """Ten cases, two raters; `changed` replaces files' rows."""
    rng = np.random.default_rng(1)
    made = {
        name: [scored(f"c{i}", {key: rng.normal(0, sd) for key, sd in SPREAD.items()}) for i in range(10)]
        for name in ("ours", "base")
    }
    votes = [
        row(choice, user=user, case=f"c{i}")
        for i in range(10)
        for user, choice in zip("uv", ("left", "right"), strict=True)
    ]
    for name, rows in {**made, "votes": votes, **changed}.items():
        write(folder / f"{name}.jsonl", rows)
    return folder


def test_known_weights_ties_and_their_ratio_come_back_within_their_errors(world):
    assert fit(world) == 0
    found = PreferenceModel.load(world / "preference.json")
    assert found.features == tuple(TRUE) and found.num_votes == 3 * CASES
    raw, errors = np.array(found.weights) / found.scale, np.array(found.weight_errors) / found.scale
    assert np.all(np.abs(raw - list(TRUE.values())) < 3 * errors)
    ratio = raw[0] / raw[1]
    ratio_error = abs(ratio) * np.hypot(errors[0] / raw[0], errors[1] / raw[1])
    assert abs(ratio - TRUE["sync_mini"] / TRUE["snr_estimate_db"]) < 3 * ratio_error < 0.5 * abs(ratio)
    assert abs(found.tie - TIE) < 3 * found.tie_error
    assert abs(found.side - np.mean(PULLS)) < 3 * np.hypot(found.side_error, np.std(PULLS) / RATERS**0.5)


def test_the_report_beats_chance_and_is_what_was_saved(world, capsys):
    assert fit(world, "--json") == 0
    found, model = json.loads(capsys.readouterr().out), PreferenceModel.load(world / "preference.json")
    assert found["simulated"] is True and model.simulated and found["raters"] == RATERS
    assert found["votes"]["fitted"] == found["votes"]["simulated"] == 900
    assert found["features"]["sync_mini"]["weight"] == model.weights[0] and found["theta"] == pytest.approx(
        model.theta
    )
    held_out = found["held_out"]
    assert held_out["accuracy"] > 0.7 > held_out["alone"]["lip_loudness_correlation.peak"]["accuracy"]
    assert held_out["log_likelihood"] > held_out["chance_log_likelihood"] + 0.05


def test_the_table_says_that_nobody_was_asked_and_of_people_it_does_not(world, tmp_path, capsys):
    assert fit(world) == 0
    printed = capsys.readouterr().out
    assert (
        "SIMULATED VOTES (900 of those used): no person was asked" in printed
        and "tie theta" in printed
        and "chance 50%" in printed
    )
    assert fit(small(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "SIMULATED" not in printed and "20 of 20 votes on overall" in printed
    assert PreferenceModel.load(tmp_path / "preference.json").simulated is False


def test_one_simulated_vote_among_those_of_people_makes_the_model_simulated(tmp_path):
    votes = [row(case=f"c{i}", simulated=i == 3) for i in range(5)] + [row("right", user="v", case="c1")]
    assert fit(small(tmp_path, votes=votes)) == 0
    assert PreferenceModel.load(tmp_path / "preference.json").simulated is True


def test_the_order_of_votes_and_scores_changes_nothing(world, tmp_path):
    assert fit(world) == 0
    for name in ("votes", "ours", "base"):
        lines = (world / f"{name}.jsonl").read_text().splitlines(keepends=True)
        random.Random(2).shuffle(lines)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "preference.json").write_text("mine")
    assert fit(tmp_path) == 0
    assert (tmp_path / "preference.json").read_bytes() == (world / "preference.json").read_bytes()
    assert [path.read_text() for path in (tmp_path / ".trash").iterdir()] == ["mine"]


def test_repeats_checks_dropped_raters_and_other_axes_do_not_count(tmp_path):
    assert fit(small(tmp_path)) == 0
    wanted = PreferenceModel.load(tmp_path / "preference.json")
    votes = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    checks = [row("right", user="bad", case=f"a{i}", right="late", attention=True) for i in range(3)]
    more = [
        row("tie", user="u", repeat=1, case="c0"),
        row(user="bad", case="c1"),
        row("tie", axis="voice", case="c2"),
        *checks,
    ]
    assert fit(small(tmp_path, votes=[*votes, *more])) == 0
    assert PreferenceModel.load(tmp_path / "preference.json") == wanted
    assert fit(tmp_path, "--keep-all-raters") == 0
    assert PreferenceModel.load(tmp_path / "preference.json").num_votes == wanted.num_votes + 1


def test_votes_on_clips_without_scores_are_left_out_and_counted(tmp_path, capsys):
    small(tmp_path)
    ours = [json.loads(line) for line in (tmp_path / "ours.jsonl").read_text().splitlines()]
    ours[4]["scores"]["sync_mini"] = {"value": None, "reason": "no face", "parts": {}, "text": ""}
    write(tmp_path / "ours.jsonl", ours[:8])
    assert fit(tmp_path, "--json") == 0
    votes = json.loads(capsys.readouterr().out)["votes"]
    assert (votes["asked"], votes["without_clip"], votes["without_score"], votes["fitted"]) == (20, 4, 2, 14)


def test_several_clips_of_a_case_are_told_apart_by_digest_alone(tmp_path, capsys):
    base = [scored(f"c{i}", dict.fromkeys(SPREAD, 0.0), sha256=f"b{i}") for i in range(6)]
    ours = [
        scored(
            f"{kind}{i}",
            dict.fromkeys(SPREAD, sign * (1.0 + i)),
            case_id=f"c{i}",
            prompt=f"c{i}",
            sha256=f"{kind}{i}",
        )
        for i in range(6)
        for kind, sign in (("good", 1), ("poor", -1))
    ]
    votes = [row("left", case=f"c{i}", left_sha256=f"good{i}") for i in range(6)]
    votes += [row("right", user="v", case=f"c{i}", left_sha256=f"poor{i}") for i in range(6)]
    assert fit(small(tmp_path, ours=ours, base=base, votes=votes), features=["sync_mini"]) == 0
    assert PreferenceModel.load(tmp_path / "preference.json").weights[0] > 0.5
    write(tmp_path / "votes.jsonl", [row(case="c1")])
    assert "votes.jsonl:1 case_id: 2 scored clips of 'ours' answer case 'c1'" in fails(capsys, tmp_path)
    write(tmp_path / "votes.jsonl", [row(case="c1", left_sha256="other")])
    assert "left_sha256: other... is not good1... of the clip that was scored" in fails(capsys, tmp_path)


def test_a_scores_stage_names_its_models_by_source(world, tmp_path, caplog):
    values = dict.fromkeys(SPREAD, 1.0)
    rows = [scored("c0", values, stage=True, source=source) for source in ("generated", "aligned")]
    path = write(tmp_path / "clips.jsonl", rows)
    assert [clip.model for clip in read_scored(ScoresFile.parsed(str(path)), ["sync_mini"])] == [
        "generated",
        "aligned",
    ]
    (one,) = read_scored(ScoresFile.parsed(f"pretrained={path}#generated"), ["lip_loudness_correlation.peak"])
    assert (one.model, one.case_id, one.values) == ("pretrained", "c0", (1.0,))
    with pytest.raises(ValueError, match=r"clips.jsonl: no row of source 'other'"):
        read_scored(ScoresFile.parsed(f"{path}#other"), ["sync_mini"])
    gone = [scored("c0", values, absent=True), scored("c1", values)]
    some = ScoresFile.parsed(f"ours={write(tmp_path / 'some.jsonl', gone)}")
    assert [clip.case_id for clip in read_scored(some, ["sync_mini"])] == ["c1"]
    assert "some.jsonl: left out 1 rows of clips that are no longer there" in caplog.text
    with pytest.raises(ValueError, match=r"none.jsonl: no clip of it is there any longer"):
        read_scored(ScoresFile.parsed(f"ours={write(tmp_path / 'none.jsonl', gone[:1])}"), ["sync_mini"])
    odd = tmp_path / "a=b#c.jsonl"
    shutil.copy(path, odd)
    assert ScoresFile.parsed(str(odd)) == ScoresFile(odd)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["sync_mini", "sync_judge"], "'sync_judge' is a judge"),
        (["sync_judge.rho_zero"], "is a judge"),
        (["wer_pocketsphinx_judge_normalised"], "is a judge"),
        (["preference_simulated"], "cannot be a feature of a preference"),
        (
            ["sync_minni"],
            "ours.jsonl: no scores of 'sync_minni', score the clips with it; did you mean 'sync_mini'",
        ),
        (
            ["lip_loudness_correlation.peek"],
            "'lip_loudness_correlation' has no part 'peek'; did you mean 'peak'",
        ),
    ],
)
def test_wrong_features_are_one_line(tmp_path, capsys, features, message):
    assert message in fails(capsys, small(tmp_path), features=features)


def test_what_cannot_be_fitted_is_one_line(tmp_path, capsys):
    small(tmp_path)
    other = fails(capsys, tmp_path, scores=[f"a={tmp_path / 'ours.jsonl'}", f"b={tmp_path / 'base.jsonl'}"])
    assert (
        "none of 20 votes is on clips that were scored; votes are on base, ours and cases like 'c0', scores "
        "of a, b" in other
    )
    assert "ours.jsonl:1 model: whose clip is it? give the scores as MODEL=FILE" in fails(
        capsys, tmp_path, scores=[str(tmp_path / "ours.jsonl")]
    )
    assert "gone.jsonl: no such file" in fails(capsys, tmp_path, scores=[f"ours={tmp_path / 'gone.jsonl'}"])
    assert "votes.jsonl:1 scores: not a row of scores" in fails(
        capsys, tmp_path, scores=[f"ours={tmp_path / 'votes.jsonl'}"]
    )
    assert "no vote on axis 'sync' to count; there are votes on overall" in fails(
        capsys, tmp_path, "--axis", "sync"
    )
    silent = [scored(f"c{i}", {**dict.fromkeys(SPREAD, 0.1 * i), "sync_mini": None}) for i in range(10)]
    assert "'sync_mini' is NaN for every clip" in fails(capsys, small(tmp_path, ours=silent, base=silent))
    assert "no feature differs" in fails(capsys, tmp_path, features=["snr_estimate_db"])
    assert "all 10 votes are ties" in fails(
        capsys, small(tmp_path, votes=[row("tie", case=f"c{i}") for i in range(10)])
    )

"""Curation: the chosen clips stand for all, good ones first, and beat a random choice."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.data.curate import CurateConfig, choose, curate, facility_location, quality_of
from pretrain.data.curation import looks
from pretrain.data.features import similarities
from pretrain.data.manifest import read_manifest

CORPUS = CorpusConfig(
    paired=60,
    audio_only=0,
    hq_audio=0,
    validation=0,
    noisy_share=0.5,
    prompts_heldout_pairs=0,
    prompts_disagree=0,
    prompts_dialogue=0,
    prompts_camera=0,
    prompts_align_train=0,
    prompts_align_held_out=0,
    processes=1,
    talk_a=0,
    talk_b=0,
    talk_test=0,
)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    root = tmp_path_factory.mktemp("curate")
    build_corpus(CORPUS, root / "corpus")
    return root, curate(CurateConfig(budget=20), root / "corpus", root / "curated")


def test_curated_beats_every_random_subset_and_is_cleaner(curated):
    _, report = curated
    assert report["chosen"] == 20
    assert report["curated"]["facility_location"] > report["random"]["facility_location_best"]
    assert report["curated"]["quality"] > report["random"]["quality"]
    assert set(report["curated"]["kinds"]) == {"speech", "dialogue", "event", "camera"}


def test_curated_rows_are_paired_rows_whose_files_are_found_from_their_new_place(curated):
    root, report = curated
    rows, _ = read_manifest(root / "curated" / "curated.jsonl")
    paired = {row.data_id: row for row in read_manifest(root / "corpus" / "paired.jsonl")[0]}
    assert len({row.data_id for row in rows}) == 20
    for row in rows:
        assert row.text == paired[row.data_id].text
        assert row.data_path.is_file()
        assert all((root / "curated" / path).is_file() for path in row.meta["reference_paths"])
    assert json.loads((root / "curated" / "report.json").read_text()) == report


def test_unreadable_clips_are_rejected_with_their_line_and_too_many_stop(curated, tmp_path):
    root, _ = curated
    rows = (root / "corpus" / "paired.jsonl").read_text().splitlines()
    (tmp_path / "clips").symlink_to(root / "corpus" / "clips")
    broken = json.loads(rows[3])
    broken["video_info"][0]["data_path"] = "gone.mp4"
    (tmp_path / "paired.jsonl").write_text("\n".join([*rows[:3], json.dumps(broken), *rows[4:10]]) + "\n")
    with pytest.raises(ValueError, match=r"paired\.jsonl:4 video_info\[0\]\.data_path: .*gone\.mp4"):
        curate(CurateConfig(budget=3), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = curate(CurateConfig(budget=3, max_bad_fraction=0.2), tmp_path, tmp_path / "out")
    assert (report["rows"], len(report["rejected"])) == (9, 1)


def test_a_large_set_is_curated_in_parts_and_its_clips_are_read_once(curated, tmp_path, monkeypatch):
    root, dense = curated
    config = CurateConfig(budget=20, dense_clips=25)
    first = curate(config, root / "corpus", tmp_path / "out", nproc=1)
    assert (first["parts"]["parts"], first["parts"]["candidates"]) == (3, 60) and first["chosen"] == 20
    # measured on all clips: the same function as the dense one
    assert first["curated"]["facility_location"] >= 0.97 * dense["curated"]["facility_location"]
    assert first["random"]["facility_location"] == pytest.approx(
        dense["random"]["facility_location"], rel=1e-3
    )
    assert 0.5 < first["at_least_of_best"] <= 1.0
    rows = (tmp_path / "out" / "curated.jsonl").read_text()

    def refuse(path):
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(looks, "read_media", refuse)
    assert curate(config, root / "corpus", tmp_path / "out", nproc=1) == first
    assert (tmp_path / "out" / "curated.jsonl").read_text() == rows
    assert not list((tmp_path / ".out.work").glob("*.npy"))


class Constant:
    """Places every clip by its length alone."""

    def embed(self, media):
        if len(media.frames) == 0:
            raise ValueError("no pictures")
        return (np.array([float(len(media.frames)), 1.0]),)


def test_a_model_may_place_the_clips(curated, tmp_path):
    root, _ = curated
    model = ("lengths", Constant)
    report = curate(CurateConfig(budget=5), root / "corpus", tmp_path / "out", model=model, nproc=1)
    assert report["chosen"] == 5 and "parts" not in report
    other = curate(CurateConfig(budget=5), root / "corpus", tmp_path / "other", nproc=1)
    assert other["facility_location_of_all"] != report["facility_location_of_all"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(3, 9), budget=st.integers(1, 4))
def test_greedy_choice_is_within_its_guarantee_of_the_best(seed, count, budget):
    from itertools import combinations

    worth = np.random.default_rng(seed).random((count, count)).astype(np.float32)
    budget = min(budget, count)
    chosen = choose(worth, budget)
    best = max(facility_location(worth, subset) for subset in combinations(range(count), budget))
    assert len(set(chosen)) == budget
    assert facility_location(worth, chosen) >= (1 - 1 / np.e) * best - 1e-4


def test_similarity_is_one_with_itself_and_falls_with_distance():
    points = np.array([[0.0], [1.0], [3.0]])
    similarity = similarities([points])
    assert np.allclose(np.diag(similarity), 1.0)
    assert similarity[0, 1] > similarity[0, 2]
    assert np.allclose(similarity, similarity.T)


def test_quality_falls_with_noise_and_clipping_and_is_middling_when_unknown():
    assert quality_of({"snr_db": 60.0}) == 1.0
    assert quality_of({"snr_db": 30.0}) == 0.25
    assert quality_of({"snr_db": 60.0, "clipped": True}) == 0.5
    assert quality_of({}) == 0.5


def test_impossible_budgets_are_refused():
    with pytest.raises(ValueError, match="budget"):
        CurateConfig(budget=0)

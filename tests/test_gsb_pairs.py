import hashlib
import json

import pytest
from gsb_votes import row, vote, write
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli import main
from finetune.gsb.pairs import ClipRef, majority, pair_up, read_clips, read_pairs, tie_shares


def clips(*models, cases=("c",), digest="{model}-{case}"):
    return [
        ClipRef(f"{m}/{c}", m, c, f"prompt {c}", None, digest.format(model=m, case=c))
        for m in models
        for c in cases
    ]


def generated(folder, cases=("c", "d")):
    """An index as `nava generate` writes it, with files."""
    folder.mkdir()
    rows = [
        {
            "data_id": case,
            "prompt": f"prompt {case}",
            "video": f"{case}.mp4",
            "reference_paths": [],
            "meta": {},
        }
        for case in cases
    ]
    for case in cases:
        (folder / f"{case}.mp4").write_bytes(f"{folder.name} {case}".encode())
    return write(folder / "index.jsonl", rows)


def digest(model, case):
    return hashlib.sha256(f"{model} {case}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("count", "label"),
    [
        ((2, 0, 1), 1),
        ((1, 0, 2), -1),
        ((1, 1, 0), 0),
        ((1, 0, 1), 0),
        ((0, 1, 1), 0),
        ((1, 3, 2), 0),
        ((3, 2, 2), 1),
        ((0, 0, 1), -1),
    ],
)
def test_the_most_frequent_answer_and_a_draw_is_same(count, label):
    assert majority(count) == label


@given(st.tuples(*[st.integers(0, 9)] * 3))
def test_the_label_turns_with_the_clips(count):
    assert majority(count) == -majority(count[::-1])


def test_votes_on_one_pair_are_gathered_per_axis_whatever_the_side():
    votes = [
        vote("left"),
        vote("right", user="v", left="base", right="ours"),
        vote("tie", axis="picture"),
        vote("right", axis="sync", simulated=True),
    ]
    (pair,) = pair_up(votes, clips("ours", "base"), "votes.jsonl")
    assert (pair.first.model, pair.second.model) == ("base", "ours")
    assert dict(pair.counts) == {"overall": (0, 0, 2), "picture": (0, 1, 0), "sync": (1, 0, 0)}
    assert [pair.label(axis) for axis in ("overall", "sync", "voice", "picture")] == [
        -1,
        1,
        None,
        0,
    ] and pair.simulated


def test_every_case_and_pair_has_its_row():
    votes = [vote(case="c"), vote(case="d"), vote(case="c", right="late"), vote("tie", case="c", user="v")]
    found = pair_up(votes, clips("ours", "base", "late", cases=("c", "d")), "votes.jsonl")
    assert [(pair.case_id, pair.first.model, pair.second.model, pair.simulated) for pair in found] == [
        ("c", "base", "ours", False),
        ("d", "base", "ours", False),
        ("c", "late", "ours", False),
    ]
    assert tie_shares(found) == {"overall": pytest.approx(1 / 3)}  # one for ours and one Same is a draw


def test_a_digest_tells_clips_of_one_model_apart():
    several = [*clips("base"), *clips("ours", digest="one"), *clips("ours", digest="two")]
    (pair,) = pair_up([vote(left_sha256="two")], several, "v")
    assert pair.second.sha256 == "two"
    with pytest.raises(ValueError, match=r"v:7 left_sha256: 2 clips of 'ours' answer case 'c'"):
        pair_up([vote(line=7)], several, "v")
    with pytest.raises(ValueError, match=r"v:7 left_sha256: three... is not one... of the clip in the index"):
        pair_up([vote(line=7, left_sha256="three")], several, "v")


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"v:3 case_id: no clip of 'base' for case 'c' in the index"):
        pair_up([vote(line=3)], clips("ours"), "v")
    with pytest.raises(ValueError, match="no vote is left"):
        pair_up([], clips("ours"), "v")
    other = [*clips("ours"), ClipRef("x", "base", "c", "another prompt", None, "x")]
    with pytest.raises(ValueError, match=r"v:3 case_id: the clips of 'c' have different prompts"):
        pair_up([vote(line=3)], other, "v")


def test_clips_come_from_an_index_per_model_or_one_that_names_models(tmp_path):
    index = generated(tmp_path / "ours")
    found = read_clips(tmp_path / "ours", "ours")
    assert found == read_clips(index, "ours") and [
        (clip.clip_id, clip.case_id, clip.model) for clip in found
    ] == [
        ("c", "c", "ours"),
        ("d", "d", "ours"),
    ]
    assert found[0].digest() == digest("ours", "c")
    with pytest.raises(
        ValueError, match=r"index.jsonl:1 model: expected text, got None; or give the index as MODEL=INDEX"
    ):
        read_clips(index)
    named = {"data_id": "r-0-1", "case_id": "r-0", "model": "k1", "prompt": "p", "sha256": "abc"}
    (clip,) = read_clips(write(tmp_path / "rollout.jsonl", [named]))
    assert (clip.case_id, clip.model, clip.digest(), clip.video) == ("r-0", "k1", "abc", None)
    with pytest.raises(ValueError, match=r":1 video: missing, and no sha256 either"):
        read_clips(write(tmp_path / "rollout.jsonl", [{**named, "sha256": ""}]))


def export(tmp_path, votes, *options):
    write(tmp_path / "votes.jsonl", votes)
    sources = [f"ours={tmp_path / 'ours'}", f"base={tmp_path / 'base' / 'index.jsonl'}"]
    arguments = [
        "gsb",
        "export",
        str(tmp_path / "votes.jsonl"),
        "--clips",
        *sources,
        "--out",
        str(tmp_path / "out" / "pairs.jsonl"),
        *options,
    ]
    try:
        return main(arguments)
    except SystemExit as leave:
        return leave.code


def test_export_writes_pairs_that_are_read_back(tmp_path, capsys):
    generated(tmp_path / "ours")
    generated(tmp_path / "base")
    votes = [
        row(simulated=True, left_sha256=digest("ours", "c")),
        row("tie", case="d"),
        row("right", axis="voice"),
    ]
    assert export(tmp_path, votes) == 0
    assert "2 pairs from 3 votes, 1 of them from SIMULATED votes" in capsys.readouterr().out
    path = tmp_path / "out" / "pairs.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    assert (
        first["labels"] == {"overall": -1, "sync": None, "voice": 1, "picture": None}
        and first["simulated"] is True
    )
    assert first["first"] == {
        "clip_id": "c",
        "model": "base",
        "sha256": digest("base", "c"),
        "video": "../base/c.mp4",
    }
    assert first["prompt"] == "prompt c" and first["counts"]["overall"] == {
        "first": 0,
        "same": 0,
        "second": 1,
    }
    one, two = read_pairs(path)
    assert one.label("voice") == 1 and two.label("overall") == 0 and not two.simulated
    assert one.second.video is not None and one.second.video.read_bytes() == b"ours c"


def test_export_leaves_an_old_file_alone_when_it_fails(tmp_path, capsys):
    generated(tmp_path / "ours")
    generated(tmp_path / "base")
    assert export(tmp_path, [row()], "--json") == 0
    assert json.loads(capsys.readouterr().out)["same_share"] == {"overall": 0.0}
    before = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    assert export(tmp_path, [row(), row(case="gone")]) == 2
    assert capsys.readouterr().err.endswith(
        "votes.jsonl:2 case_id: no clip of 'ours' for case 'gone' in the index\n"
    )
    (tmp_path / "base" / "d.mp4").unlink()
    assert export(tmp_path, [row(), row(case="d")]) == 2
    assert "d.mp4: no such file; a clip of the index is gone" in capsys.readouterr().err
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == before and [
        p.name for p in (tmp_path / "out").iterdir()
    ] == ["pairs.jsonl"]


def test_a_file_that_differs_goes_to_the_trash(tmp_path, capsys):
    generated(tmp_path / "ours")
    generated(tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()
    (out / "pairs.jsonl").write_text("mine")
    for _ in range(2):
        assert export(tmp_path, [row()], "--json") == 0
    (kept,) = (out / ".trash").iterdir()
    assert kept.read_text() == "mine" and len(read_pairs(out / "pairs.jsonl")) == 1
    told = capsys.readouterr()
    assert f"moved to {kept}" in told.err and len(told.out.splitlines()) == 2


def test_repeats_checks_and_dropped_raters_make_no_pairs(tmp_path):
    generated(tmp_path / "ours")
    generated(tmp_path / "base")
    checks = [row("right", user="bad", case=f"a{i}", right="late", attention=True) for i in range(3)]
    votes = [
        row(),
        row("right", repeat=1),
        row("right", user="bad"),
        row("right", user="bad", case="d"),
        *checks,
    ]
    assert export(tmp_path, votes) == 0
    (pair,) = read_pairs(tmp_path / "out" / "pairs.jsonl")
    assert dict(pair.counts) == {"overall": (0, 0, 1)}
    assert export(tmp_path, votes, "--keep-all-raters") == 0
    assert len(read_pairs(tmp_path / "out" / "pairs.jsonl")) == 2


def test_a_damaged_pair_names_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"pairs.jsonl:1 row: not a pair of `nava gsb export`"):
        read_pairs(write(tmp_path / "pairs.jsonl", [{"case_id": "c"}]))

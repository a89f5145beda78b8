"""Requests of the page: fields, seeds, and refusals by the service's own rules."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_world import offer, video_service

from experiments.web.form import (
    GUIDANCE,
    MOST_SEEDS,
    PageForm,
    check_sides,
    mouth_boxes_of,
    seeds_of,
    warnings_of,
)
from experiments.web.services import ModelSide, PageServices, offer_of, services_of
from pretrain.flow.guidance import GuidanceScales

SIDE = ModelSide("", "mini", "look", 0.5)


def test_a_service_is_understood_by_what_it_says():
    there = offer(prompt_chars=100, steps=50)
    found = offer_of(json.loads(json.dumps(there.described())), "http://x")
    assert found.described() | {"created": 0} == there.described() | {"created": 0}


def test_what_is_no_service_is_one_line():
    with pytest.raises(ConnectionError, match="http://x: /v1/models says what this page does not understand"):
        offer_of({"id": "a", "defaults": {}, "limits": {}}, "http://x")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"prompt": "a <S>b"}, "prompt: <S> at character 3 without <E>"),
        ({"prompt": "a" * 9000}, "prompt: more than 8000 characters"),
        ({"seconds": 600.0}, "seconds: '600.0'"),
        ({"size": "65x64"}, "size: must be a multiple of 32|multiple of 32"),
        ({"size": "64"}, "size: '64'; expected WIDTHxHEIGHT"),
        ({"steps": 0}, "steps: 0"),
        ({"guidance": {"text_audio": 1e9}}, "guidance: text_audio"),
        ({"negative_prompt": "<S>no<E>"}, "negative_prompt: speech does not belong"),
        ({"references": (Path("a.wav"), Path("b.wav"))}, "references"),
        ({"task": "TI2AV"}, "input_reference|first"),
    ],
)
def test_refusals_are_the_services(changes, found, tmp_path):
    form = dataclasses.replace(PageForm(prompt="Says <S>one<E>."), **changes)
    with pytest.raises(ValueError, match=found) as refused:
        warnings_of(form, SIDE, offer())
    assert "\n" not in str(refused.value)
    if not form.references:
        with video_service(tmp_path / "v") as world:
            answer = world.create(**form.fields(SIDE, 0))
            assert answer.status_code == 422 and answer.json()["error"]["message"] == str(refused.value)


def test_a_good_form_is_accepted_as_it_was_filled_in(tmp_path):
    guidance = dict.fromkeys(GUIDANCE, 1.5)
    form = PageForm(
        prompt="Says <S>one<E>.",
        negative_prompt=" blur ",
        seconds=0.7,
        size=" 64X96",
        steps=3,
        guidance=guidance,
    )
    assert warnings_of(form, SIDE, offer()) == []
    with video_service(tmp_path / "v") as world:
        job = world.create(**form.fields(SIDE, 7)).json()
    kept = {
        name: job[name] for name in ("prompt", "seed", "size", "steps", "guidance", "adapters", "num_frames")
    }
    assert kept == {
        "prompt": "Says <S>one<E>.",
        "seed": 7,
        "size": "64x96",
        "steps": 3,
        "guidance": dict(sorted(guidance.items())),
        "adapters": {"look": 0.5},
        "num_frames": 17,
    }
    assert job["negative_prompt"] == "blur"


def test_every_scale_of_guidance_is_explained():
    assert list(GUIDANCE) == [field.name for field in dataclasses.fields(GuidanceScales)]
    assert all(text.endswith((".", "!")) for text in GUIDANCE.values())


def test_two_sides_must_differ():
    services = PageServices({})
    with pytest.raises(ValueError, match="A and B are the same model"):
        check_sides(PageForm(prompt="a"), [SIDE, SIDE], services)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=MOST_SEEDS, unique=True))
def test_seeds_come_back(seeds):
    assert seeds_of(", ".join(map(str, seeds))) == tuple(seeds)
    assert seeds_of(" ".join(map(str, seeds))) == tuple(seeds)


def test_ranges_and_nothing():
    assert seeds_of("1-4") == (1, 2, 3, 4) and seeds_of("5, 1 - 2") == (5, 1, 2)
    first, second = seeds_of(""), seeds_of(" ")
    assert len(first) == 1 and first != second, "drawn"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1-9", "more than 8"),
        ("1-999999999999", "more than 8"),
        ("x", "'x'"),
        ("3-1", "3-1"),
        ("-1", "'-1'"),
        ("1 1", "twice"),
        ("9" * 19, "at most"),
        ("1.5", "'1.5'"),
    ],
)
def test_seeds_that_are_none(text, found):
    with pytest.raises(ValueError, match=found):
        seeds_of(text)


def test_mouth_boxes():
    assert mouth_boxes_of("1,2,3,4; 5 6 7 8;") == ((1, 2, 3, 4), (5, 6, 7, 8)) and mouth_boxes_of("") == ()
    for text in ("1,2,3", "3,2,1,4", "a,b,c,d", "1,2,3,-4"):
        with pytest.raises(ValueError, match="mouth boxes"):
            mouth_boxes_of(text)


@pytest.mark.parametrize(
    ("side", "label"),
    [
        (ModelSide("", "mini"), "mini"),
        (ModelSide("", "mini", "look"), "mini+look"),
        (ModelSide("B", "mini", "look", 0.5), "B.mini+look@0.5"),
    ],
)
def test_labels(side, label):
    assert side.label == label


def test_services_and_their_tokens(tmp_path, monkeypatch):
    monkeypatch.delenv("NAVA_API_TOKEN", raising=False)
    (tmp_path / "token").write_text("t" * 20)
    (tmp_path / "other").write_text("o" * 20 + "\n")
    found = services_of(["http://a", "ours=https://b/c"], [f"ours={tmp_path / 'other'}"], tmp_path / "token")
    assert {name: (one.url, one.token) for name, one in found.servers.items()} == {
        "A": ("http://a", "t" * 20),
        "ours": ("https://b/c", "o" * 20),
    }
    assert [*services_of([], [], tmp_path / "token").servers] == [""]
    monkeypatch.setenv("NAVA_API_TOKEN", "e" * 20)
    assert services_of(["http://a"], [], tmp_path / "gone").servers[""].token == "e" * 20


@pytest.mark.parametrize(
    ("places", "files", "found"),
    [
        (["x=http://a", "x=http://b"], [], "called 'x' already"),
        (["localhost:8124"], [], "is not http"),
        (["a/b=http://a"], [], "slashes"),
        (["http://a"], ["gone"], "gone: no such file; `nava serve tokens add"),
        (["http://a"], ["empty"], "empty: no token"),
    ],
)
def test_wrong_services_are_one_line(places, files, found, tmp_path, monkeypatch):
    monkeypatch.delenv("NAVA_API_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    Path("token").write_text("t" * 20)
    with pytest.raises((ValueError, FileNotFoundError), match=found) as wrong:
        services_of(places, files, Path("token"))
    assert "\n" not in str(wrong.value)

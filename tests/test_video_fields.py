"""Requests for clips: what is taken, what each wrong one is told, and that nothing else gets through."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_world import CONFIG, offer

from orchestration.generation_service.fields import length_of, read_fields
from orchestration.generation_service.offer import Wanted
from orchestration.service.limits import Refusal

SPOKEN = "A woman says: <S>seven<E>."


def wanted(first_frame=False, voices=(), **fields) -> Wanted:
    request, _ = read_fields(json.dumps(fields).encode(), {}, 50_000)
    return offer().wanted(request, first_frame, set(voices))


def test_defaults_are_the_models_and_a_seed_is_drawn():
    first, second = wanted(prompt="A ball."), wanted(prompt="A ball.")
    assert (first.row["num_frames"], first.row["width"], first.steps) == (25, 64, CONFIG.sampler.steps)
    assert first.row["seed"] != second.row["seed"] and first.guidance == {}
    assert first.config(CONFIG).sampler == CONFIG.sampler


def test_fields_of_openai_and_of_vllm_omni():
    one = wanted(prompt="A ball.", seconds="2", size="96x32", model="mini", num_inference_steps=7, seed=3)
    other = wanted(prompt="A ball.", num_frames=49, width=96, height=32, steps=7, seed=3, fps=24)
    assert one == other and one.config(CONFIG).sampler.steps == 7


def test_what_the_model_was_not_trained_on_is_warned_of():
    facts = {"trained_on": {"num_frames": [25, 25], "fps": [24.0], "sizes": ["64x64"], "spans": 1}}
    trained = dataclasses.replace(offer(), facts=facts)

    def warned(**fields) -> list[str]:
        request, _ = read_fields(json.dumps(fields).encode(), {}, 1000)
        return [line.partition(":")[0] for line in trained.wanted(request, False, set()).warnings]

    assert warned(prompt=SPOKEN) == []
    assert warned(prompt=SPOKEN * 2, seconds=2, size="96x64") == ["seconds", "size", "prompt"]
    assert trained.described()["trained_on"] == facts["trained_on"]


def test_guidance_scale_is_that_of_classifier_free_guidance():
    """v_u + w (v_c - v_u) = v_c + (w - 1)(v_c - v_u)."""
    scales = wanted(prompt="A ball.", guidance_scale=4.5, guidance={"align_video": 1}).config(CONFIG)
    found = dataclasses.asdict(scales.sampler.guidance)
    assert (found["text_video"], found["text_audio"], found["align_video"]) == (3.5, 3.5, 1)


def test_forms_of_guidance_and_adapters():
    for guidance in ("text_audio=3,align_video=0", {"text_audio": 3.0, "align_video": 0.0}):
        assert wanted(prompt="x", guidance=guidance).guidance == {"align_video": 0.0, "text_audio": 3.0}
    for adapters in ("look=0.5,voice", ["look=0.5", "voice"]):
        assert wanted(prompt="x", adapters=adapters).adapters == {"look": 0.5, "voice": 1.0}


def test_what_is_kept_comes_back_as_it_was():
    one = wanted(True, {0}, prompt=SPOKEN, task="TIA2AV", negative_prompt="noise", adapters="look")
    assert Wanted.from_json(one.to_json()) == one


def test_kinds_are_equal_exactly_where_one_batch_can_be_made():
    base = {"prompt": "A ball.", "seed": 1}
    kind = wanted(**base).kind(CONFIG)
    alike = [{"prompt": "Another."}, {"seed": 2}, {"negative_prompt": "noise"}]
    other = [{"steps": 3}, {"seconds": 2}, {"size": "32x32"}, {"task": "T2A"}, {"adapters": "look"}]
    other += [{"guidance_scale": 2}, {"solver": "unipc"}]
    assert all(wanted(**{**base, **change}).kind(CONFIG) == kind for change in alike)
    kinds = [wanted(**{**base, **change}).kind(CONFIG) for change in other]
    assert len({kind, *kinds}) == len(other) + 1
    sound, whole = wanted(prompt="x", task="T2A"), wanted(prompt="x")
    assert sound.cost(CONFIG) < whole.cost(CONFIG) and wanted(prompt="x", steps=28).cost(CONFIG) == (
        2 * wanted(prompt="x", steps=14).cost(CONFIG)
    )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "prompt: missing"),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": "x" * 8001}, "prompt: more than 8000 characters"),
        ({"prompt": "<S>open"}, "prompt: "),
        ({"prompt": "half \ud800"}, "prompt: "),
        ({"prompt": 5}, "prompt: "),
        ({"prompt": "x", "promt": "y"}, "promt: unknown field; did you mean 'prompt'"),
        ({"prompt": "x", "model": "sora-2"}, "model: 'sora-2' is not served here"),
        ({"prompt": "x", "seconds": "soon"}, "seconds: 'soon'"),
        ({"prompt": "x", "seconds": 0}, "seconds: '0"),
        ({"prompt": "x", "seconds": 3600}, "seconds: '3600"),
        ({"prompt": "x", "seconds": "nan"}, "seconds: 'nan'"),
        ({"prompt": "x", "seconds": 1, "num_frames": 5}, "num_frames: stands beside seconds"),
        ({"prompt": "x", "num_frames": 6}, "num_frames: "),
        ({"prompt": "x", "num_frames": 10**6 + 1}, "num_frames: "),
        ({"prompt": "x", "size": "big"}, "size: 'big'"),
        ({"prompt": "x", "width": 0}, "width: must be"),
        ({"prompt": "x", "width": 64, "height": 0}, "height: must be"),
        ({"prompt": "x", "solver": ""}, "solver: empty"),
        ({"prompt": "x", "fit": ""}, "fit: empty"),
        ({"prompt": "x", "data_id": ""}, "data_id: empty"),
        ({"prompt": "x", "task": ""}, "task: empty"),
        ({"prompt": "x", "size": "70x64"}, "width: must be a multiple of 32"),
        ({"prompt": "x", "size": "8192x8192"}, "size: 8192x8192 pixels; at most"),
        ({"prompt": "x", "size": "64x64", "width": 64}, "size: stands beside"),
        ({"prompt": "x", "fps": 30}, "fps: this model makes 24"),
        ({"prompt": "x", "steps": 0}, "steps: 0; from 1 to 200"),
        ({"prompt": "x", "steps": 10**9}, "steps: 1000000000; from 1"),
        ({"prompt": "x", "steps": True}, "steps: expected another type"),
        ({"prompt": "x", "steps": "7"}, "steps: expected another type"),
        ({"prompt": "x", "steps": 3, "num_inference_steps": 3}, "steps: stands beside"),
        ({"prompt": "x", "solver": "dpm"}, "solver: unknown 'dpm'"),
        ({"prompt": "x", "guidance": {"text": 1}}, "guidance: unknown name 'text'"),
        ({"prompt": "x", "guidance": "text_audio"}, "guidance: 'text_audio'; expected NAME=NUMBER"),
        ({"prompt": "x", "guidance": {"text_audio": 1e9}}, "guidance: text_audio 1e+09"),
        ({"prompt": "x", "guidance_scale": 0.5}, "guidance_scale: 0.5; from 1"),
        (
            {"prompt": "x", "guidance_scale": 2, "guidance": {"text_audio": 1}},
            "guidance_scale: stands beside",
        ),
        ({"prompt": "x", "negative_prompt": "<S>no<E>"}, "negative_prompt: speech does not belong"),
        ({"prompt": "x", "task": "A2V"}, "task: unknown task 'A2V'"),
        ({"prompt": "x", "task": "TI2AV"}, "input_reference: task TI2AV starts from one"),
        ({"prompt": "x", "adapters": "other"}, "adapters: 'other' is not served; did you mean"),
        ({"prompt": "x", "adapters": "look=99"}, "adapters: look=99; a scale is at most 10"),
        ({"prompt": "x", "fit": "squeeze"}, "fit: unknown 'squeeze'"),
        ({"prompt": "x", "seed": -1}, "seed: "),
        ({"prompt": "x", "seed": 2**63}, "seed: "),
        ({"prompt": "x", "data_id": "../a"}, "data_id: "),
        ({"prompt": "x", "input_reference": {"image_url": "http://h/"}}, "input_reference: send the picture"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(fields, found):
    with pytest.raises(Refusal) as refused:
        wanted(**fields)
    assert found in refused.value.reason and "\n" not in refused.value.reason
    assert refused.value.status == (404 if "model" in fields else 422)
    param = json.loads(refused.value.content("openai"))["error"]["param"]
    assert param == found.partition(":")[0]


def test_a_clip_too_short_for_a_token_of_sound_is_refused_for_its_seconds():
    fast = dataclasses.replace(offer(), config=dataclasses.replace(CONFIG, fps=60.0))
    request, _ = read_fields(json.dumps({"prompt": "A ball.", "num_frames": 1}).encode(), {}, 1000)
    with pytest.raises(Refusal, match=r"^seconds: num_frames 1 at 60 a second") as refused:
        fast.wanted(request, False, set())
    assert refused.value.status == 422
    silent, _ = read_fields(json.dumps({"prompt": "x", "num_frames": 1, "task": "T2V"}).encode(), {}, 1000)
    assert fast.wanted(silent, False, set()).row["num_frames"] == 1


@pytest.mark.parametrize(
    ("given", "fields", "found"),
    [
        ({"voices": {0}}, {"prompt": "No speech."}, "references: 1 references for 0"),
        ({"voices": {1}}, {"prompt": SPOKEN}, "references: "),
        ({"voices": {0}}, {"prompt": SPOKEN, "task": "T2V"}, "task: T2V takes no references"),
        ({"first_frame": True}, {"prompt": "x", "task": "T2A"}, "task: T2A takes no input_reference"),
        ({"first_frame": True}, {"prompt": SPOKEN, "task": "TIA2AV"}, "references: task TIA2AV speaks"),
    ],
)
def test_files_that_do_not_go_with_the_rest(given, fields, found):
    with pytest.raises(Refusal) as refused:
        wanted(**given, **fields)
    assert found in refused.value.reason, refused.value.reason


@pytest.mark.parametrize("content", [b"[]", b"prompt=x", b"\xff", b'{"a":' + b"[" * 10_000])
def test_what_is_no_object_of_json(content):
    with pytest.raises(Refusal) as refused:
        read_fields(content, {}, 1000)
    assert refused.value.status == 422 and refused.value.reason.startswith("request: ")


def test_parts_of_a_form(tmp_path):
    parts = {"prompt": SPOKEN, "seconds": "1", "seed": "7", "guidance": '{"text_audio": 2}', "size": "64x32"}
    uploads = {}
    for name, text in {**parts, "reference_0": "RIFF", "input_reference": "PNG"}.items():
        uploads[name] = tmp_path / name
        uploads[name].write_text(text)
    request, files = read_fields(b"", uploads, 1000)
    assert (request.seed, request.seconds, request.guidance) == (7, "1", {"text_audio": 2.0})
    assert set(files) == {"reference_0", "input_reference"}
    with pytest.raises(Refusal, match="more than 20 bytes of text"):
        read_fields(b"", uploads, 20)
    (tmp_path / "voice").write_text("x")
    with pytest.raises(Refusal, match="voice: unknown field"):
        read_fields(b"", {**uploads, "voice": tmp_path / "voice"}, 1000)


@given(seconds=st.floats(0.01, 60.0))
@settings(max_examples=200, deadline=None)
def test_lengths_are_the_nearest_that_can_be_made(seconds):
    request, _ = read_fields(json.dumps({"prompt": "x", "seconds": seconds}).encode(), {}, 1000)
    frames = length_of(request, 24.0, 25, 60.0)
    assert frames % 4 == 1 and abs(frames - max(1.0, seconds * 24.0)) <= 2.0 + 1e-6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = ("prompt", "seconds", "size", "seed", "steps", "guidance", "adapters", "task", "num_frames", "fps")


@given(fields=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), json_values, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_object_is_a_clip_or_one_line(fields):
    try:
        one = wanted(**{"prompt": "A ball.", **fields})
    except Refusal as refusal:
        assert 400 <= refusal.status < 500 and refusal.reason and "\n" not in refusal.reason
        json.loads(refusal.content("openai"))
    else:
        assert 1 <= one.steps <= 200 and one.cost(CONFIG) > 0 and Wanted.from_json(one.to_json()) == one

"""The three paradigms side by side: equal sizes, counted FLOPs, isolation, masks, gradients, checkpoints."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import audio_stream, clean_batch, conditioning, debug_model, present, video_stream
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.args import ModelArgs
from pretrain.model.attention import AttentionPlan, scaled_attention
from pretrain.model.checkpoint import load_model, write_model
from pretrain.model.flavors import build_model, flavor
from pretrain.model.flops import ClipShape, forward_flops, training_flops
from pretrain.model.plan import plan_model
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.recipe import ParallelConfig
from pretrain.types import Conditioning, Stream, Task

MODELS = {name: debug_model(name=name) for name in ("debug", "debug_dual_tower", "debug_unified")}
EVERY = pytest.mark.parametrize("name", MODELS)


def having(**changes: object) -> Conditioning:
    return replace(conditioning(), **changes)


def apart() -> Conditioning:
    return having(modalities_joined=torch.zeros(2, dtype=torch.bool))


@pytest.mark.parametrize("name", ["dual_tower", "unified"])
def test_parameters_agree_with_the_mini_and_so_does_the_width(name: str) -> None:
    assert plan_model(name)["params_total"] == pytest.approx(plan_model("mini")["params_total"], rel=0.1)
    assert flavor(name).width == flavor("mini").width


@pytest.mark.parametrize(
    ("paradigm", "blocks"), [("dual_tower", "num_fusion_blocks"), ("unified", "num_alignment_blocks")]
)
def test_blocks_a_paradigm_has_not_are_an_error(paradigm: str, blocks: str) -> None:
    with pytest.raises(ValueError, match=f"{blocks} must be 0"):
        ModelArgs(paradigm=paradigm, **{blocks: 3})  # type: ignore[arg-type]


@EVERY
@pytest.mark.parametrize("streams", ["both", "audio", "video"])
def test_counted_flops_are_torchs(name: str, streams: str) -> None:
    model = MODELS[name]
    video = replace(video_stream(frames=3), sigma=torch.full((2, 3), 0.5)) if streams != "audio" else None
    audio = audio_stream(tokens=10) if streams != "video" else None
    shape = ClipShape(video=12 * bool(video), audio=10 * bool(audio), context=9, references=2, video_levels=3)
    with FlopCounterMode(display=False) as forward:
        answer = model(video, audio, conditioning(tokens=9, references=2))
    with FlopCounterMode(display=False) as backward:
        torch.stack([part.sum() for part in answer if part is not None]).sum().backward()
    model.zero_grad()
    assert forward.get_total_flops() == 2 * forward_flops(flavor(name), shape)
    assert forward.get_total_flops() + backward.get_total_flops() == 2 * training_flops(flavor(name), shape)


@EVERY
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 4), tokens=st.integers(1, 12))
def test_masked_modalities_are_as_if_alone(name: str, seed: int, frames: int, tokens: int) -> None:
    model, audio, video = (
        MODELS[name],
        audio_stream(tokens=tokens, seed=seed),
        video_stream(frames=frames, seed=seed + 1),
    )
    other_video, other_audio = (
        video_stream(frames=frames, seed=seed + 2),
        audio_stream(tokens=tokens, seed=seed + 3),
    )
    with torch.no_grad():
        first = model(video, audio, apart())
        assert torch.equal(first.audio, model(other_video, audio, apart()).audio)
        assert torch.equal(first.video, model(video, other_audio, apart()).video)
        torch.testing.assert_close(first.audio, model(None, audio, apart()).audio, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(first.video, model(video, None, apart()).video, atol=1e-5, rtol=1e-5)


@EVERY
def test_joined_modalities_see_each_other(name: str) -> None:
    model = MODELS[name]
    with torch.no_grad():
        first, other_video, other_audio = (
            model(video_stream(seed=v), audio_stream(seed=a), conditioning())
            for v, a in ((1, 2), (5, 2), (1, 5))
        )
    assert (first.audio - other_video.audio).abs().max() > 1e-4
    assert (first.video - other_audio.video).abs().max() > 1e-4


@EVERY
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    joined=st.tuples(st.booleans(), st.booleans()),
)
def test_masked_samples_stay_apart_beside_padding(
    name: str, seed: int, lengths: tuple[int, int], joined: tuple[bool, bool]
) -> None:
    model, mixed = MODELS[name], having(modalities_joined=torch.tensor(joined))
    frames, tokens = torch.tensor([3, lengths[0]]), torch.tensor([lengths[1], 10])
    video, audio = (
        replace(video_stream(seed=seed), lengths=frames),
        replace(audio_stream(seed=seed + 1), lengths=tokens),
    )
    other_video, other_audio = (
        replace(video_stream(seed=seed + 2), lengths=frames),
        replace(audio_stream(seed=seed + 3), lengths=tokens),
    )
    with torch.no_grad():
        first = model(video, audio, mixed)
        with_video, with_audio = (
            model(other_video, audio, mixed).audio,
            model(video, other_audio, mixed).video,
        )
    for row, together in enumerate(joined):
        audio_same = torch.equal(first.audio[row, :, : tokens[row]], with_video[row, :, : tokens[row]])
        video_same = torch.equal(first.video[row, :, : frames[row]], with_audio[row, :, : frames[row]])
        assert audio_same == video_same == (not together)


@EVERY
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), frames=st.integers(1, 3), tokens=st.integers(3, 9), words=st.integers(2, 8))
def test_a_sample_is_the_same_alone_and_padded_in_a_batch(
    name: str, seed: int, frames: int, tokens: int, words: int
) -> None:
    model = MODELS[name]
    video, audio, given_text = (
        video_stream(seed=seed),
        audio_stream(seed=seed),
        conditioning(seed=seed, references=1),
    )
    video, audio = (
        replace(video, lengths=torch.tensor([frames, 3])),
        replace(audio, lengths=torch.tensor([tokens, 10])),
    )
    kept = replace(given_text, text_mask=torch.arange(9) < torch.tensor([[words], [9]]))
    with torch.no_grad():
        batch = model(video, audio, kept)
        alone = model(_first(video, frames), _first(audio, tokens), _first_text(kept, words))
    torch.testing.assert_close(batch.video[:1, :, :frames], alone.video, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(batch.audio[:1, :, :tokens], alone.audio, atol=2e-5, rtol=1e-4)


def _first(stream: Stream, length: int) -> Stream:
    return replace(
        stream, latents=stream.latents[:1, :, :length], lengths=stream.lengths[:1], sigma=stream.sigma[:1]
    )


def _first_text(given_text: Conditioning, words: int) -> Conditioning:
    first = {
        name: value[:1]
        for name, value in ((item.name, getattr(given_text, item.name)) for item in fields(given_text))
    }
    return Conditioning(
        **{**first, "text": first["text"][:, :words], "text_mask": first["text_mask"][:, :words]}
    )


@EVERY
def test_dropped_text_leaves_no_trace_and_kept_text_does(name: str) -> None:
    model = MODELS[name]
    with torch.no_grad():
        for kept in (False, True):
            texts = [replace(conditioning(seed=seed), text_kept=torch.full((2,), kept)) for seed in (0, 1)]
            first, second = (model(video_stream(), audio_stream(), text) for text in texts)
            assert (
                torch.equal(first.audio, second.audio) == torch.equal(first.video, second.video) == (not kept)
            )


@EVERY
def test_voices_are_heard_and_null_where_absent(name: str) -> None:
    model = MODELS[name]
    with torch.no_grad():
        voices = [
            model(None, audio_stream(), having(speakers=speakers)).audio
            for speakers in (torch.zeros(2, 2, 192), torch.ones(2, 2, 192))
        ]
        model.timbre_token.null_token.add_(torch.linspace(-1, 1, 32))
        null = model(None, audio_stream(), having(speakers=torch.zeros(2, 2, 192))).audio
        given_voice = model(None, audio_stream(), having(speakers=torch.ones(2, 2, 192))).audio
        model.timbre_token.null_token.sub_(torch.linspace(-1, 1, 32))
    assert (voices[0] - voices[1]).abs().max() > 1e-5 and (voices[0] - null).abs().max() > 1e-5
    torch.testing.assert_close(voices[1], given_voice)


@EVERY
def test_every_token_carries_its_own_level(name: str) -> None:
    """A clean first frame has level 0; spelling one level out per frame changes nothing."""
    model, sigma = MODELS[name], torch.full((2, 3), 0.6)
    clean = sigma.clone()
    clean[:, 0] = 0
    with torch.no_grad():
        one, spelled, first_clean = (
            model(replace(video_stream(), sigma=levels), audio_stream(), conditioning()).video
            for levels in (sigma[:, :1], sigma, clean)
        )
    torch.testing.assert_close(one, spelled, atol=1e-5, rtol=1e-5)
    assert (first_clean - one).abs().max() > 1e-4


@EVERY
def test_gradients_reach_all_parameters(name: str) -> None:
    model = debug_model(name=name)
    corrupted = corrupt(clean_batch(Task.TIA2AV, batch=16), ObjectiveConfig(), 0)
    sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
    sums.loss(1.0, 1.0, 1.0).backward()
    assert [
        key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().max() > 0
    ] == []


def test_self_attention_is_over_what_the_paradigm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[tuple[int, int]] = []
    pairs: list[tuple[int, int]] = []
    attend = AttentionPlan.attend
    monkeypatch.setattr(
        AttentionPlan,
        "attend",
        lambda self, q, k, v: (plans.append((q.shape[2], k.shape[2])), attend(self, q, k, v))[1],
    )
    for module in ("dual_tower", "unified"):
        monkeypatch.setattr(
            f"pretrain.model.{module}.scaled_attention",
            lambda q, k, v, mask: (
                pairs.append((q.shape[2], k.shape[2])),
                scaled_attention(q, k, v, mask),
            )[1],
        )
    with torch.no_grad():
        for model in MODELS.values():
            model(video_stream(frames=3), audio_stream(tokens=10), conditioning(tokens=9))
    assert plans == [(22, 22)] * 2 + [(12, 12), (10, 10)] * 2  # NAVA, then each tower alone
    assert pairs == [(12, 10), (10, 12)] * 2 + [(31, 31)] * 2  # where the towers meet, then all peers


@EVERY
def test_written_models_load_as_their_paradigm(name: str, tmp_path) -> None:
    model = MODELS[name]
    write_model(tmp_path, name, flavor(name), {"model": model.state_dict()}, {})
    loaded, described = load_model(tmp_path, "model")
    assert type(loaded) is type(model) and described.args == flavor(name)
    with torch.no_grad():
        ours, theirs = (each(video_stream(), audio_stream(), conditioning()) for each in (model, loaded))
    assert torch.equal(present(ours.audio), present(theirs.audio))


@pytest.mark.parametrize("name", ["dual_tower", "unified"])
def test_first_answers_are_as_loud_as_the_minis(name: str) -> None:
    """Same initialisation rules: the zero heads answer nothing, and no paradigm starts with exploding
    states."""
    norms = []
    for each in ("mini", name):
        torch.manual_seed(0)
        model = build_model(flavor(each))
        model.init_weights()
        states: list[torch.Tensor] = []
        model.head.register_forward_hook(lambda module, args, out, states=states: states.append(args[0]))
        with torch.no_grad():
            out = model(video_stream(), audio_stream(), conditioning())
        assert out.video.isfinite().all() and out.audio.isfinite().all()
        norms.append(float(states[0].norm()))
    assert math.log(norms[1] / norms[0]) == pytest.approx(0, abs=1.0)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["debug_unified", pytest.param("debug_dual_tower", marks=pytest.mark.slow)])
def test_two_ranks_alternate_tasks_and_equal_one(name: str, tmp_path) -> None:
    """Sharded by block, checkpointed, with unused modalities: the same losses as on one rank."""
    latents = write_latents(tmp_path / "latents")
    losses = []
    for world_size, parallel in (
        (1, ParallelConfig(shard_blocks=False)),
        (2, ParallelConfig(activation_checkpointing="full")),
    ):
        run = stage_run(
            tmp_path / str(world_size), latents, config(5, flavor=name, interval=100, parallel=parallel)
        )
        assert run_ranks(run.save(), world_size) == [0] * world_size, (run.out / "log.0").read_text()[-2000:]
        losses.append([(row["task"], row["loss"]) for row in rows(run) if "loss" in row])
        assert load_model(run.out / "model")[1].flavor == name
    assert len({task for task, _ in losses[0]}) >= 3
    for (task, one), (same_task, two) in zip(*losses, strict=True):
        assert task == same_task and one == pytest.approx(two, rel=1e-5)

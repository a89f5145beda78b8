"""What the model must do by construction: independence, isolation, clocks, voices, padding."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import audio_stream, conditioning, debug_model, present, video_stream

from pretrain.model.attention import plan_attention
from pretrain.model.flavors import FLAVORS, flavor
from pretrain.model.plan import plan_model
from pretrain.model.transformer import NavaTransformer
from pretrain.types import Stream

MODEL = debug_model()


def apart(batch: int = 2):
    return replace(conditioning(batch), modalities_joined=torch.zeros(batch, dtype=torch.bool))


@pytest.mark.parametrize(("name", "params"), [("nava_6b", 6_296_995_520), ("nava_7b_split", 7_178_034_880)])
def test_published_parameter_count(name: str, params: int) -> None:
    counted = plan_model(name)
    assert counted["params_total"] == params
    assert counted["tokens_per_clip"] == {"video": 32_560, "audio": 151, "total": 32_711}


def test_parts_of_the_published_count() -> None:
    with torch.device("meta"):
        model = NavaTransformer(flavor("nava_6b"))
    tables = 6 * 3072
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.double_blocks[0]) + 2 * tables == 239_209_472
    assert count(model.single_blocks[0]) + tables == 163_656_704
    assert count(model.audio_embedder) == 531_237_888
    assert count(model.timbre_token) == 10_042_752


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 4), tokens=st.integers(1, 12))
def test_masked_audio_does_not_depend_on_video_and_the_reverse(seed: int, frames: int, tokens: int) -> None:
    audio, video = audio_stream(tokens=tokens, seed=seed), video_stream(frames=frames, seed=seed + 1)
    other_video, other_audio = (
        video_stream(frames=frames, seed=seed + 2),
        audio_stream(tokens=tokens, seed=seed + 3),
    )
    with torch.no_grad():
        first = MODEL(video, audio, apart())
        assert torch.equal(first.audio, MODEL(other_video, audio, apart()).audio)
        assert torch.equal(first.video, MODEL(video, other_audio, apart()).video)
        torch.testing.assert_close(first.audio, MODEL(None, audio, apart()).audio, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(first.video, MODEL(video, None, apart()).video, atol=1e-5, rtol=1e-5)


def test_joined_audio_does_depend_on_video() -> None:
    with torch.no_grad():
        outs = [MODEL(video_stream(seed=seed), audio_stream(), conditioning()).audio for seed in (1, 5)]
    assert (outs[0] - outs[1]).abs().max() > 1e-4


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    joined=st.tuples(st.booleans(), st.booleans()),
)
def test_masked_samples_stay_apart_beside_padding(
    seed: int, lengths: tuple[int, int], joined: tuple[bool, bool]
) -> None:
    mixed = replace(conditioning(), modalities_joined=torch.tensor(joined))
    frames, tokens = (
        torch.tensor([3, lengths[0]]),
        torch.tensor([lengths[1], 10]),
    )  # always padded, so always under a mask
    video, audio = (
        replace(video_stream(seed=seed), lengths=frames),
        replace(audio_stream(seed=seed + 1), lengths=tokens),
    )
    other_video, other_audio = (
        replace(video_stream(seed=seed + 2), lengths=frames),
        replace(audio_stream(seed=seed + 3), lengths=tokens),
    )
    with torch.no_grad():
        first = MODEL(video, audio, mixed)
        with_video, with_audio = (
            MODEL(other_video, audio, mixed).audio,
            MODEL(video, other_audio, mixed).video,
        )
    for row, together in enumerate(joined):
        audio_same = torch.equal(first.audio[row, :, : tokens[row]], with_video[row, :, : tokens[row]])
        video_same = torch.equal(first.video[row, :, : frames[row]], with_audio[row, :, : frames[row]])
        assert audio_same == video_same == (not together)


def test_one_batch_may_mix_joined_and_masked_samples() -> None:
    mixed = replace(conditioning(), modalities_joined=torch.tensor([True, False]))
    with torch.no_grad():
        out = MODEL(video_stream(), audio_stream(), mixed)
        joined, masked = (
            MODEL(video_stream(), audio_stream(), conditioning()),
            MODEL(video_stream(), audio_stream(), apart()),
        )
    torch.testing.assert_close(out.audio[0], joined.audio[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.audio[1], masked.audio[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.video[0], joined.video[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.video[1], masked.video[1], atol=1e-5, rtol=1e-5)


def test_long_batches_that_mix_them_attend_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = replace(conditioning(4), modalities_joined=torch.tensor([True, False, False, True]))
    answers = []
    for limit in (1 << 18, 0):
        monkeypatch.setattr("pretrain.model.attention.MASKED_SCORES", limit)
        model = debug_model()
        out = model(video_stream(4), audio_stream(4), replace(mixed))
        (present(out.video).square().sum() + present(out.audio).square().sum()).backward()
        answers.append(
            [
                present(out.video),
                present(out.audio),
                *(p.grad for p in model.parameters() if p.grad is not None),
            ]
        )
        plan = plan_attention(None, mixed, 12, 10)
        assert (plan.rows is None) == bool(limit) and (plan.mask is None) != bool(limit)
    for masked, by_rows in zip(*answers, strict=True):
        torch.testing.assert_close(
            by_rows, masked, atol=1e-5 * max(1.0, float(masked.detach().abs().max())), rtol=1e-5
        )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dropped_text_leaves_no_trace_of_the_context(seed: int) -> None:
    """Context enters by cross-attention alone: with it dropped, nothing of the context can reach
    self-attention."""
    dropped = lambda s: replace(conditioning(seed=s), text_kept=torch.zeros(2, dtype=torch.bool))  # noqa: E731
    with torch.no_grad():
        outs = [MODEL(video_stream(), audio_stream(), dropped(s)) for s in (seed, seed + 1)]
    assert torch.equal(outs[0].video, outs[1].video) and torch.equal(outs[0].audio, outs[1].audio)


def test_self_attention_is_over_video_and_audio_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.model.attention import AttentionPlan

    lengths: list[tuple[int, int]] = []
    attend = AttentionPlan.attend
    monkeypatch.setattr(
        AttentionPlan,
        "attend",
        lambda self, q, k, v: (lengths.append((q.shape[2], k.shape[2])), attend(self, q, k, v))[1],
    )
    with torch.no_grad():
        MODEL(video_stream(frames=3), audio_stream(tokens=10), conditioning(tokens=9))
    assert lengths == [(3 * 4 + 10, 3 * 4 + 10)] * 2


@settings(max_examples=10, deadline=None)
@given(order=st.permutations([0, 1, 2]))
def test_permuting_references_permutes_voices(order: list[int]) -> None:
    """Span i's voice is reference i: permuting references equals permuting which position each is written
    to."""
    given_refs = conditioning(references=3, tokens=12)
    slots = torch.tensor([1, 4, 7]).expand(2, -1)
    given_refs = replace(given_refs, speaker_positions=slots)
    permuted_refs = replace(given_refs, speakers=given_refs.speakers[:, order])
    inverse = [order.index(i) for i in range(3)]
    permuted_slots = replace(given_refs, speaker_positions=given_refs.speaker_positions[:, inverse])
    with torch.no_grad():
        a, b = (MODEL(video_stream(), audio_stream(), c).audio for c in (permuted_refs, permuted_slots))
        untouched = MODEL(video_stream(), audio_stream(), given_refs).audio
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert order == [0, 1, 2] or (a - untouched).abs().max() > 1e-5


def test_replaced_context_is_what_the_published_weights_see() -> None:
    from pretrain.model.timbre import place_timbre_tokens

    context, tokens, positions = torch.zeros(1, 4, 2), torch.ones(1, 2, 2), torch.tensor([[2, -1]])
    assert place_timbre_tokens(context + 5, tokens, positions, keep_text=False)[0, :, 0].tolist() == [
        5,
        5,
        1,
        5,
    ]
    assert place_timbre_tokens(context + 5, tokens, positions, keep_text=True)[0, :, 0].tolist() == [
        5,
        5,
        6,
        5,
    ]


def test_zero_reference_is_the_null_token() -> None:
    null = replace(conditioning(), speakers=torch.zeros(2, 2, 192))
    with torch.no_grad():
        before = MODEL(None, audio_stream(), null).audio
        MODEL.timbre_token.null_token.add_(1.0)
        after = MODEL(None, audio_stream(), null).audio
        other = MODEL(None, audio_stream(), conditioning()).audio
        MODEL.timbre_token.null_token.sub_(1.0)
        same = MODEL(None, audio_stream(), conditioning()).audio
    assert (before - after).abs().max() > 1e-5
    torch.testing.assert_close(other, same)


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 4),
    tokens=st.integers(3, 10),
    more_frames=st.integers(0, 2),
    more_tokens=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_padding_changes_nothing(
    frames: int, tokens: int, more_frames: int, more_tokens: int, seed: int
) -> None:
    video, audio = video_stream(frames=frames, seed=seed), audio_stream(tokens=tokens, seed=seed)
    noise = lambda *shape: torch.randn(shape)  # noqa: E731
    long_video = replace(video, latents=torch.cat([video.latents, noise(2, 48, more_frames, 4, 4)], dim=2))
    long_audio = replace(audio, latents=torch.cat([audio.latents, noise(2, 128, more_tokens)], dim=2))
    with torch.no_grad():
        short, long = MODEL(video, audio, conditioning()), MODEL(long_video, long_audio, conditioning())
    torch.testing.assert_close(long.video[:, :, :frames], short.video, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(long.audio[:, :, :tokens], short.audio, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attended", [False, True])
def test_padded_text_is_attended_to_only_by_the_flag(attended: bool) -> None:
    model = debug_model()
    object.__setattr__(model.args, "attend_text_padding", attended)
    padded = replace(conditioning(), text_mask=torch.arange(9).expand(2, -1) < 7)
    changed = replace(padded, text=padded.text.index_fill(1, torch.tensor([7, 8]), 3.0))
    with torch.no_grad():
        difference = (
            (model(None, audio_stream(), padded).audio - model(None, audio_stream(), changed).audio)
            .abs()
            .max()
        )
    object.__setattr__(model.args, "attend_text_padding", False)
    assert (difference > 1e-5) == attended


def test_clean_first_frame_carries_its_own_level() -> None:
    sigma = torch.full((2, 3), 0.6)
    sigma[:, 0] = 0
    with torch.no_grad():
        uniform = MODEL(replace(video_stream(), sigma=torch.full((2, 3), 0.6)), None, conditioning()).video
        grouped = MODEL(video_stream(), None, conditioning()).video
        clean = MODEL(replace(video_stream(), sigma=sigma), None, conditioning()).video
    torch.testing.assert_close(uniform, grouped, atol=1e-5, rtol=1e-5)
    assert (clean - uniform).abs().max() > 1e-4


def test_bf16_stays_near_fp32() -> None:
    from pretrain.sampling import lower_precision

    with torch.no_grad():
        exact = MODEL(video_stream(), audio_stream(), conditioning())
        lowered = lower_precision(debug_model(), torch.bfloat16)
        rough = lowered(video_stream(), audio_stream(), conditioning())
    assert {parameter.dtype for parameter in lowered.time.parameters()} == {torch.float32}
    assert lowered.head.linear.weight.dtype == torch.bfloat16
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() / a.norm() < 2e-2


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.01, 1.0), deviation=st.floats(0.05, 2.0))
def test_clean_answers_become_velocities(sigma: float, deviation: float) -> None:
    from pretrain.model.shell import velocity_of_clean

    state, answer, level = (
        torch.randn(5).double(),
        torch.randn(5).double(),
        torch.tensor(sigma, dtype=torch.float64),
    )
    weight = sigma**2 + deviation**2 * (1 - sigma) ** 2
    clean = deviation**2 * (1 - sigma) / weight * state + sigma / weight**0.5 * answer
    torch.testing.assert_close(velocity_of_clean(answer, state, level, deviation), (state - clean) / sigma)


def test_at_full_noise_the_answer_is_the_clean_latent_and_at_none_it_is_finite() -> None:
    from pretrain.model.shell import velocity_of_clean

    noise, answer = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(velocity_of_clean(answer, noise, torch.tensor(1.0), 0.3), noise - answer)
    assert velocity_of_clean(answer, noise, torch.tensor(0.0), 0.3).isfinite().all()


def test_neither_stream_is_an_error() -> None:
    with pytest.raises(ValueError, match="got neither"):
        MODEL(None, None, conditioning())


def test_unknown_flavor_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'mini'"):
        flavor("mimi")
    assert set(FLAVORS) >= {"mini", "nava_6b"}


def test_streams_keep_their_shapes() -> None:
    out = MODEL(video_stream(frames=2), audio_stream(tokens=7), conditioning())
    assert isinstance(video_stream(), Stream)
    assert out.video.shape == (2, 48, 2, 4, 4) and out.audio.shape == (2, 128, 7)

"""Corruption and loss: per-modality normalisation, noised tokens only, draws that belong to the sample."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import clean_batch, debug_model, present

from pretrain.dropout import DropoutConfig, draw_dropout
from pretrain.flow.path import LevelConfig
from pretrain.objective import ObjectiveConfig, corrupt, element_counts, velocity_loss
from pretrain.types import AVBatch, Conditioning, Task, Velocity

FLAT = ObjectiveConfig(levels=LevelConfig(weight="flat"))
ALWAYS_FRAME = replace(FLAT, dropout=DropoutConfig(text=0, modality_mask=0, first_frame=1))


def rows(batch: AVBatch, index: list[int]) -> AVBatch:
    c = batch.conditioning
    picked = Conditioning(*(getattr(c, name)[index] for name in c.__dataclass_fields__))
    cut = lambda s: replace(s, latents=s.latents[index], lengths=s.lengths[index])  # noqa: E731
    return replace(
        batch,
        video=cut(batch.video),
        audio=cut(batch.audio),
        conditioning=picked,
        sample_ids=batch.sample_ids[index],
        epochs=batch.epochs[index],
    )


def test_perfect_answer_has_no_loss_and_zero_answer_has_the_targets_power() -> None:
    corrupted = corrupt(clean_batch(), FLAT, seed=0)
    perfect = velocity_loss(Velocity(corrupted.video_target, corrupted.audio_target), corrupted)
    assert perfect.video == 0 and perfect.audio == 0
    video = present(corrupted.video_target)
    zero = velocity_loss(
        Velocity(torch.zeros_like(video), torch.zeros_like(present(corrupted.audio_target))), corrupted
    )
    torch.testing.assert_close(zero.video, video.square().sum())
    assert zero.video_count == video.numel()


@settings(max_examples=20, deadline=None)
@given(permutation=st.permutations([0, 1, 2, 3]), seed=st.integers(0, 99))
def test_draws_belong_to_the_sample(permutation: list[int], seed: int) -> None:
    whole = corrupt(clean_batch(Task.TIA2AV), ObjectiveConfig(), seed)
    shuffled = corrupt(rows(clean_batch(Task.TIA2AV), permutation), ObjectiveConfig(), seed)
    assert torch.equal(present(whole.video_target)[permutation], present(shuffled.video_target))
    assert torch.equal(present(whole.audio).latents[permutation], present(shuffled.audio).latents)
    assert torch.equal(whole.conditioning.text_kept[permutation], shuffled.conditioning.text_kept)


def test_draws_do_not_depend_on_the_padding() -> None:
    short = clean_batch()
    pad = lambda s: replace(s, latents=torch.cat([s.latents, torch.zeros_like(s.latents[:, :, :2])], dim=2))  # noqa: E731
    long = replace(short, video=pad(present(short.video)), audio=pad(present(short.audio)))
    before, after = corrupt(short, FLAT, 0), corrupt(long, FLAT, 0)
    assert torch.equal(present(after.video_target)[:, :, :3], present(before.video_target))
    assert torch.equal(present(after.audio_target)[:, :, :10], present(before.audio_target))


def test_draws_change_with_epoch_and_seed() -> None:
    first = present(corrupt(clean_batch(), FLAT, 0).audio_target)
    later = present(
        corrupt(replace(clean_batch(), epochs=torch.ones(4, dtype=torch.int64)), FLAT, 0).audio_target
    )
    other = present(corrupt(clean_batch(), FLAT, 1).audio_target)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 6))
def test_more_video_tokens_do_not_scale_the_audio_gradient(frames: int) -> None:
    """The audio term's gradient is that of the audio mean, whatever the number of video tokens."""
    corrupted = corrupt(clean_batch(frames=frames), FLAT, 0)
    target = present(corrupted.audio_target)
    answer = torch.zeros_like(target, requires_grad=True)
    sums = velocity_loss(Velocity(torch.zeros_like(present(corrupted.video_target)), answer), corrupted)
    sums.loss(sums.video_count, sums.audio_count, audio_weight=0.2).backward()
    torch.testing.assert_close(answer.grad, 0.2 * -2 * target / target.numel())


@settings(max_examples=6, deadline=None)
@given(frames=st.integers(2, 6))
def test_more_video_tokens_do_not_scale_the_audio_gradient_of_the_model(frames: int) -> None:
    """Apart from what joint attention lets through: the audio head learns alike beside 1 latent frame and
    beside many."""

    def gradient(num_frames: int) -> torch.Tensor:
        model, batch = (
            debug_model(),
            replace(clean_batch(frames=num_frames), audio=clean_batch(frames=1).audio),
        )
        corrupted = corrupt(batch, replace(FLAT, dropout=DropoutConfig(modality_mask=1.0)), 0)
        sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
        sums.loss(sums.video_count, sums.audio_count, 0.2).backward()
        return present(model.head_audio.linear.weight.grad)

    torch.testing.assert_close(gradient(frames), gradient(1), atol=1e-6, rtol=1e-4)


def test_modalities_at_300_to_1_weigh_as_configured() -> None:
    corrupted = corrupt(clean_batch(frames=30, tokens=1, batch=1), FLAT, 0)
    off_by_one = Velocity(present(corrupted.video_target) + 1, present(corrupted.audio_target) + 1)
    sums = velocity_loss(off_by_one, corrupted)
    assert float(sums.video_count / sums.audio_count) == pytest.approx(180)
    assert float(sums.loss(sums.video_count, sums.audio_count, 0.2)) == pytest.approx(1.2, rel=1e-5)


def test_given_first_frame_is_clean_at_level_zero_and_not_in_the_loss() -> None:
    batch = clean_batch(Task.TI2AV)
    corrupted = corrupt(batch, ALWAYS_FRAME, 0)
    video, target = present(corrupted.video), present(corrupted.video_target)
    assert torch.equal(video.latents[:, :, 0], present(batch.video).latents[:, :, 0])
    assert not video.sigma[:, 0].any() and video.sigma[:, 1:].all()
    wrong = target.clone()
    wrong[:, :, 0] += 100
    assert velocity_loss(Velocity(wrong, corrupted.audio_target), corrupted).video == 0
    assert element_counts(corrupted)[0] == target[:, :, 1:].numel()


def test_padding_is_not_in_the_loss() -> None:
    batch = clean_batch()
    batch = replace(batch, audio=replace(present(batch.audio), lengths=torch.tensor([10, 4, 10, 1])))
    corrupted = corrupt(batch, FLAT, 0)
    wrong = present(corrupted.audio_target).clone()
    wrong[1, :, 4:] += 9
    wrong[3, :, 1:] += 9
    sums = velocity_loss(Velocity(corrupted.video_target, wrong), corrupted)
    assert sums.audio == 0 and sums.audio_count == 128 * (10 + 4 + 10 + 1)


@pytest.mark.parametrize("task", list(Task))
def test_tasks_train_what_they_generate(task: Task) -> None:
    corrupted = corrupt(clean_batch(task), ObjectiveConfig(), 0)
    assert (corrupted.video is None) == (task == Task.T2A)
    assert (corrupted.audio is None) == (task == Task.T2V)
    if task in (Task.T2V, Task.TI2AV):
        assert not corrupted.conditioning.speakers.any()
    velocity = debug_model()(corrupted.video, corrupted.audio, corrupted.conditioning)
    sums = velocity_loss(velocity, corrupted)
    assert torch.isfinite(sums.loss(sums.video_count, sums.audio_count, 0.2))
    counts = element_counts(corrupted)
    assert counts[0] == sums.video_count and counts[1] == sums.audio_count
    assert {
        (stream.rate_hz, stream.video_rate_hz) for stream in (corrupted.video, corrupted.audio) if stream
    } <= {
        (6.0, 6.0),
        (25.0, 6.0),
    }
    assert corrupted.audio is None or corrupted.audio.rate_hz == 25.0


def test_a_task_without_its_modality_is_an_error() -> None:
    with pytest.raises(ValueError, match="T2AV generates video, but the batch has none"):
        corrupt(replace(clean_batch(), video=None), FLAT, 0)


def test_dropout_rates_and_ties() -> None:
    many = replace(
        clean_batch(Task.TIA2AV, batch=1),
        sample_ids=torch.arange(4000),
        epochs=torch.zeros(4000, dtype=torch.int64),
    )
    dropped = draw_dropout(many, DropoutConfig(), seed=0)
    for kept, probability in (
        (dropped.text_kept, 0.9),
        (dropped.modalities_joined, 0.8),
        (dropped.timbre_kept, 0.9),
        (dropped.first_frame_given, 0.5),
    ):
        assert float(kept.float().mean()) == pytest.approx(probability, abs=0.03)
    corrupted = corrupt(clean_batch(batch=4), ObjectiveConfig(dropout=DropoutConfig(text=1.0)), 0)
    assert not corrupted.conditioning.speakers.any() and not corrupted.conditioning.text_kept.any()


def test_dropout_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"dropout.text is a probability, got 1.5"):
        DropoutConfig(text=1.5)

"""Flow-GRPO: ratio 1 before an update, the clip, one clip range for two sizes, joint and routed advantages,
no dependence on ranks."""

import math
from dataclasses import replace

import pytest
import torch
from alignment_cases import KEY, GainPolicy, advantage, assert_parts_add_up, rollout, scored, with_trajectory
from hypothesis import given
from hypothesis import strategies as st

from finetune.objectives.grpo import Grpo, GrpoConfig, GrpoPhase, check_on_policy, count, loss
from finetune.objectives.surrogate import clipped, clipped_loss
from finetune.sde import Kernel, joint_log_prob, normalised_log_ratio, replay, step
from finetune.types import Rollout, RolloutsWithAdvantage, take

KERNELS = (Kernel(name="flow_sde", eta=0.7), Kernel(name="cps", eta=0.8))
START = (0.3, 0.4)
ALONE = GrpoConfig(reference_weight=0)
GAINS = [1.0, -1.0, 2.0, -0.5]


def clips(kernel: Kernel = KERNELS[1], width: int = 10) -> Rollout:
    return with_trajectory(rollout(video=(3, 1, 10, width)), GainPolicy(START, old=START), kernel)


def joint(
    gains: list[float] = GAINS, kernel: Kernel = KERNELS[1], on_policy: bool = False
) -> RolloutsWithAdvantage:
    return scored(clips(kernel), advantage(gains, gains), on_policy)


def test_the_clip_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.3, 0.7, 1.3, 0.7]).double()
    gains = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0]).double()
    found = clipped_loss(ratios.log(), gains, 0.1, 5.0)
    torch.testing.assert_close(found, torch.tensor([-2.0, -2.2, -1.4, 2.6, 1.8]).double())
    assert clipped(ratios.log(), gains, 0.1).tolist() == [False, True, False, False, True]
    assert clipped_loss(torch.zeros(2), torch.tensor([40.0, -40.0]), 0.1, 5.0).tolist() == [-5, 5]


@given(log_ratio=st.floats(-1, 1), gain=st.floats(-5, 5), c=st.floats(1e-4, 0.5))
def test_a_step_is_clipped_exactly_where_it_has_no_gradient(log_ratio: float, gain: float, c: float) -> None:
    at = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([gain], dtype=torch.float64)
    (slope,) = torch.autograd.grad(clipped_loss(at, gains, c, 5.0).sum(), at)
    if abs(abs(math.expm1(log_ratio)) - c) > 1e-9 and abs(gain) > 1e-9:
        assert bool(clipped(at.detach(), gains, c)) == (slope.item() == 0)
        assert slope.item() in (0.0, pytest.approx(-gain * math.exp(log_ratio)))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("routed", [False, True])
def test_the_ratio_is_exactly_one_before_an_update(kernel: Kernel, routed: bool) -> None:
    """So the loss is minus the summed advantages, and nothing is clipped."""
    policy = GainPolicy(START, old=START)
    found = loss(
        policy,
        joint(kernel=kernel, on_policy=True),
        replace(ALONE, routed=routed, ratio_tolerance=1e-300),
        KEY,
    )
    assert found.loss.item() == pytest.approx(-2 * sum(GAINS), rel=1e-12)  # two trained steps
    for name in ("video", "audio") if routed else ("joint",):
        assert (
            float(found.metrics[f"ratio_off_{name}"][0]) == 0
            and float(found.metrics[f"clip_fraction_{name}"][0]) == 0
        )
    assert policy.asked == ["default"] * 2


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_another_policy_than_the_one_that_rolled_out_is_refused(kernel: Kernel) -> None:
    moved = GainPolicy((START[0], START[1] + 0.05))
    with pytest.raises(
        ValueError,
        match=r"not on policy before the first update: \|ratio - 1\| is \d\.\d+e-\d\d, allowed 1e-05",
    ) as caught:
        loss(moved, joint(kernel=kernel, on_policy=True), ALONE, KEY)
    assert "\n" not in str(caught.value)
    loss(moved, joint(kernel=kernel, on_policy=False), ALONE, KEY)


def test_on_policy_is_checked_both_ways_and_for_nan() -> None:
    check_on_policy(torch.tensor([9e-6, -9e-6, 0.0]))
    check_on_policy(torch.zeros(0))
    for wrong in (2e-5, -2e-5, math.nan, math.inf):
        with pytest.raises(ValueError, match="not on policy"):
            check_on_policy(torch.tensor([0.0, wrong]))
    with pytest.raises(ValueError, match="not on policy"):
        check_on_policy(torch.tensor([9e-6]), tolerance=1e-6)


def test_ratios_are_relative_to_the_old_policy() -> None:
    """Off policy `old` is asked and has ratio 1; on policy it is the trained one, whatever `old` is."""
    policy = GainPolicy((0.31, 0.42), old=(0.31, 0.42))
    found = loss(policy, joint(on_policy=False), ALONE, KEY)
    assert found.loss.item() == pytest.approx(-2 * sum(GAINS), rel=1e-12)
    assert policy.asked == ["default", "old"] * 2
    start = GainPolicy(START, old=(0.9, 0.9))
    assert float(loss(start, joint(on_policy=True), ALONE, KEY).metrics["ratio_off_joint"][0]) == 0
    slopes = [
        GainPolicy.gradients(policy_, loss(policy_, joint(on_policy=on), ALONE, KEY).loss)
        for policy_, on in ((GainPolicy(START, old=START), False), (GainPolicy(START), True))
    ]
    assert slopes[0] == slopes[1] and all(slopes[0])


def test_old_is_copied_after_every_round() -> None:
    class Executor:
        decays: list[float] = []

        def update_old(self, decay: float) -> None:
            self.decays.append(decay)

    assert Grpo(GrpoPhase()).after_round(0, Executor()) == {} and Executor.decays == [0]


def test_a_clip_that_takes_no_part_is_not_checked() -> None:
    batch = joint(on_policy=True)
    steps = batch.rollout.trajectory
    assert steps is not None
    steps.next_video[1] = torch.nan
    given_ = advantage(GAINS, GAINS, valid=[True, False, True, True])
    policy = GainPolicy(START, old=START)
    found = loss(policy, replace(batch, advantage=given_), ALONE, KEY)
    assert found.loss.item() == pytest.approx(-2 * (sum(GAINS) - GAINS[1])) and float(found.count) == 6
    assert all(math.isfinite(slope) for slope in policy.gradients(found.loss))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_an_update_makes_good_steps_likelier(kernel: Kernel) -> None:
    policy, batch = GainPolicy(START, old=START), joint(kernel=kernel)
    slopes = policy.gradients(loss(policy, batch, ALONE, KEY).loss)
    with torch.no_grad():
        for gain, slope in zip(policy.default, slopes, strict=True):
            gain -= 1e-3 * slope
    wide = replace(ALONE, clip_range=10.0)
    assert loss(policy, batch, wide, KEY).loss.item() < -2 * sum(GAINS)


def test_joint_and_routed_agree_where_they_must() -> None:
    """Equal advantages, ratio 1: the gradient of the joint ratio is the sum of the two of their shares."""
    policy, batch = GainPolicy(START, old=START), joint()
    together = policy.gradients(loss(policy, batch, replace(ALONE, video_share=0.3), KEY).loss)
    apart = policy.gradients(loss(policy, batch, replace(ALONE, video_share=0.3, routed=True), KEY).loss)
    assert together == pytest.approx(apart, rel=1e-9)


@pytest.mark.parametrize("routed", [False, True])
def test_sound_keeps_its_share_at_three_hundred_to_one(routed: bool) -> None:
    """Its gradient is (1 - w) times that of its own log-ratio, with 3, 300 or 3000 elements of video beside
    it."""
    found = []
    policy = GainPolicy(START, old=START)
    for width in (10, 100):
        batch = scored(clips(width=width), advantage(GAINS, GAINS))
        assert batch.rollout.video[0].numel() == 30 * width and batch.rollout.audio[0].numel() == 1
        for share in (0.5, 0.2):
            config = replace(ALONE, routed=routed, video_share=share)
            found.append(
                policy.gradients(loss(policy, fixed_sound(batch), config, KEY).loss)[1] / (1 - share)
            )
    assert found == pytest.approx([found[0]] * 4, rel=1e-9) and found[0] != 0


def test_one_clip_range_serves_both_modalities_at_full_size() -> None:
    """Audio of 151 x 128 and video of 32,560 x 192 elements, velocities changed by an rms of 0.03: of each
    modality the clip holds back a like share, and the joint ratio is neither's alone. Of means over elements
    it would hold back all or nothing of one."""
    kernel = KERNELS[1]
    sizes, found, plain = {"video": 32_560 * 192, "audio": 151 * 128}, {}, {}
    generator, clips_, gains = torch.Generator().manual_seed(0), 16, torch.tensor([1.0, -1.0])
    level, below = torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.82], dtype=torch.float64)
    for name, size in sizes.items():
        state, old = (torch.randn(1, size, generator=generator) for _ in range(2))
        now, noise = old + 0.03 * torch.randn(1, size, generator=generator), torch.empty(1, size)
        ratios = []
        for _ in range(clips_):
            taken = step(kernel, state, old, level, below, noise.normal_(generator=generator))
            steps = (level, below, taken.next_state)
            raw = replay(kernel, state, now, *steps) - taken.log_prob
            ratios.append((normalised_log_ratio(kernel, state, now, old, *steps), raw))
        found[name], plain[name] = (torch.cat(part) for part in zip(*ratios, strict=True))
    c = float(found["audio"].std()) / 2

    def held_back(log_ratio: torch.Tensor, clip_range: float) -> float:
        return float(clipped(log_ratio[:, None], gains, clip_range).double().mean())

    shares = {name: held_back(values, c) for name, values in found.items()}
    assert 0.15 < shares["audio"] < 0.45 and 0.5 < shares["video"] / shares["audio"] < 2, shares
    joint_share = held_back(joint_log_prob(found["video"], found["audio"], 0.5), c)
    assert 0.25 < joint_share / shares["audio"] < 2
    for name in sizes:  # no bias: ratios above and below 1
        assert abs(float(found[name].mean())) < float(found[name].std())
    spread = float(plain["audio"].std() / plain["video"].std())
    assert 10 < spread < 30 and float(plain["video"].mean()) < -3 * float(plain["video"].std())


def fixed_sound(batch: RolloutsWithAdvantage) -> RolloutsWithAdvantage:
    """The sound's trajectory of the narrow clips: its noise is drawn after the video's, whose size
    differs."""
    steps, narrow = batch.rollout.trajectory, clips().trajectory
    assert steps is not None and narrow is not None
    same = replace(
        steps, audio=narrow.audio, next_audio=narrow.next_audio, log_prob_audio=narrow.log_prob_audio
    )
    return replace(batch, rollout=replace(batch.rollout, trajectory=same))


def test_routed_audio_rewards_leave_the_video_exactly_alone() -> None:
    config, moved = replace(ALONE, routed=True), GainPolicy((0.31, 0.42), old=START)
    for has_video in (False, True):  # no reward about the picture; one that is alike in all groups
        given_ = advantage([0.0] * 4, GAINS, has_video=has_video)
        video, audio = moved.gradients(
            loss(moved, scored(clips(), given_), replace(config, clip_range=10.0), KEY).loss
        )
        assert video == 0 and audio != 0


def test_a_joint_ratio_refuses_two_advantages() -> None:
    for given_ in (advantage(GAINS, [0.0] * 4), advantage([0.0] * 4, [0.0] * 4, has_video=False)):
        with pytest.raises(ValueError, match=r"set grpo\.routed, or do not route"):
            loss(GainPolicy(START, old=START), scored(clips(), given_), ALONE, KEY)


def test_the_velocity_kl_is_a_mean_for_each_modality() -> None:
    policy = GainPolicy(START, old=START)
    policy.gains["reference"] = (START[0] + 0.2, START[1] - 0.1)
    batch, config = joint([0.0] * 4), GrpoConfig(reference_weight=0.3, video_share=0.8)
    found = loss(policy, batch, config, KEY)
    steps = batch.rollout.trajectory
    assert steps is not None
    far = [
        away**2 * states.square().flatten(2).mean(2).sum()
        for away, states in ((0.2, steps.video), (0.1, steps.audio))
    ]
    assert found.loss.item() == pytest.approx(0.3 * float(0.8 * far[0] + 0.2 * far[1]), rel=1e-9)
    assert policy.asked == ["default", "old", "reference"] * 2


def test_steps_and_the_clip_fraction_are_counted() -> None:
    moved = GainPolicy((START[0] + 0.01, START[1] + 0.01), old=START)
    found = loss(moved, joint(), ALONE, KEY)
    assert float(found.count) == float(count(joint(), ALONE)) == 8
    share, number = found.metrics["clip_fraction_joint"].tolist()
    assert 0 < share < 8 and number == 8  # one direction of each is beyond the clip range
    assert float(found.metrics["ratio_off_joint"][0]) >= abs(float(found.metrics["ratio_bias_joint"][0])) > 0


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("routed", [False, True])
def test_a_rank_more_changes_nothing(kernel: Kernel, routed: bool) -> None:
    given_ = advantage(GAINS, GAINS, valid=[True, True, False, True])
    batch, config = scored(clips(kernel), given_), GrpoConfig(routed=routed, clip_range=0.01)
    assert_parts_add_up(loss, count, lambda: GainPolicy((0.31, 0.42), old=START), batch, config)


def test_rows_are_cut_through_the_whole_batch() -> None:
    batch = joint()
    cut = take(batch, torch.tensor([2, 0]))
    steps, before = cut.rollout.trajectory, batch.rollout.trajectory
    assert steps is not None and before is not None
    assert torch.equal(steps.next_audio, before.next_audio[[2, 0]]) and torch.equal(
        cut.advantage.video, batch.advantage.video[[2, 0]]
    )
    assert (
        torch.equal(cut.rollout.conditioning.text, batch.rollout.conditioning.text[[2, 0]])
        and steps.kernel == before.kernel
    )
    with pytest.raises(TypeError, match="expected a batch"):
        take(3, torch.tensor([0]))


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="has no trajectory; sample it with stochastic steps"):
        loss(GainPolicy(START, old=START), scored(rollout(), advantage(GAINS, GAINS)), ALONE, KEY)
    with pytest.raises(ValueError, match="grpo: clip_range must be above 0, got 0"):
        GrpoConfig(clip_range=0)
    with pytest.raises(ValueError, match=r"video_share must be at least 0 and at most 1, got 1\.5"):
        GrpoConfig(video_share=1.5)
    with pytest.raises(ValueError, match="one row per clip, got"):
        replace(rollout(), groups=torch.tensor([0]))
    with pytest.raises(ValueError, match="must be int64"):
        replace(rollout(), groups=torch.zeros(4))

"""Stochastic steps against their formulas (alignment.md 2.2, 2.3, 2.8), at the ends of the flow, and
replayed."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from alignment_cases import GainPolicy, rollout, with_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.sde import (
    Kernel,
    KernelName,
    joint_log_prob,
    log_prob,
    normalised_log_ratio,
    replay,
    step,
    transition,
)

KERNELS = (Kernel(name="flow_sde", eta=0.7), Kernel(name="cps", eta=0.8))


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


level = st.floats(0.02, 0.98)
falling = (
    st.tuples(level, level)
    .map(lambda pair: (max(pair), min(pair)))
    .filter(lambda pair: pair[0] - pair[1] > 1e-3)
)


@given(levels=falling, eta=st.floats(0.05, 1.5))
def test_flow_sde_is_the_formula_in_both_forms(levels: tuple[float, float], eta: float) -> None:
    s, t = levels
    state, velocity, _ = draws(1, 2, 3)
    mean, step_std, _ = transition(Kernel(name="flow_sde", eta=eta), state, velocity, at(s), at(t))
    rate, dt = eta * math.sqrt(s / (1 - s)), t - s
    drift_form = state * (1 + rate**2 / (2 * s) * dt) + velocity * (1 + rate**2 * (1 - s) / (2 * s)) * dt
    score = -(state + (1 - s) * velocity) / s
    torch.testing.assert_close(mean, drift_form)
    torch.testing.assert_close(mean, state + (velocity - rate**2 / 2 * score) * dt)
    assert float(step_std) == pytest.approx(rate * math.sqrt(-dt), rel=1e-12)


@given(levels=falling, eta=st.floats(0.05, 1.0))
def test_cps_is_the_formula(levels: tuple[float, float], eta: float) -> None:
    s, t = levels
    state, velocity, _ = draws(1, 2, 3)
    mean, step_std, _ = transition(Kernel(name="cps", eta=eta), state, velocity, at(s), at(t))
    std = t * math.sin(eta * math.pi / 2)
    clean, noise = state - s * velocity, state + (1 - s) * velocity
    torch.testing.assert_close(
        mean, (1 - t) * clean + math.sqrt(max(t**2 - std**2, 0.0)) * noise, atol=1e-7, rtol=1e-7
    )
    assert float(step_std) == pytest.approx(std, rel=1e-12)


@given(levels=falling, eta=st.floats(0.05, 1.0))
def test_cps_noise_has_exactly_the_next_levels_variance(levels: tuple[float, float], eta: float) -> None:
    """With clean data 0 and noise 1 the state is s and the velocity 1: the mean is what is left of the old
    noise."""
    s, t = levels
    old, fresh, _ = transition(Kernel(name="cps", eta=eta), at(s)[:, None], at(1.0)[:, None], at(s), at(t))
    assert abs(float(old) ** 2 + float(fresh) ** 2 - t**2) < 1e-12
    data, _, _ = transition(Kernel(name="cps", eta=eta), at(1 - s)[:, None], at(-1.0)[:, None], at(s), at(t))
    assert float(data) == pytest.approx(1 - t, abs=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_flow_sde_keeps_the_marginals_of_normal_data(eta: float) -> None:
    """Data N(0, 4) has a linear velocity: the variance follows a recursion and must end at the data's."""
    kernel, variance = Kernel(name="flow_sde", eta=eta), 1.0
    levels = torch.linspace(1, 0.002, 1001, dtype=torch.float64)
    for s, t in pairwise(levels):
        slope = (s - 4 * (1 - s)) / (4 * (1 - s) ** 2 + s**2)  # E[eps - x0 | x_s] / x_s
        mean, step_std, _ = transition(
            kernel, torch.ones(1, 1, dtype=torch.float64), slope.view(1, 1), s[None], t[None]
        )
        variance = float(mean) ** 2 * variance + float(step_std) ** 2
    assert variance == pytest.approx(4, rel=0.03)


def test_flow_sde_starts_at_pure_noise_with_the_next_level_in_its_rate() -> None:
    state, velocity, noise = draws(1, 4)
    reached = transition(KERNELS[0], state, velocity, at(1.0), at(0.9))
    assert float(reached.step_std) == pytest.approx(
        0.7 * math.sqrt(1 / (1 - 0.9)) * math.sqrt(0.1), rel=1e-12
    )
    assert bool(step(KERNELS[0], state, velocity, at(1.0), at(0.9), noise).next_state.isfinite().all())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("level", [1.0, 0.2])
def test_the_last_step_lands_on_the_clean_estimate(kernel: Kernel, level: float) -> None:
    state, velocity, noise = draws(1, 4)
    velocity.requires_grad_()
    taken = step(kernel, state, velocity, at(level), at(0.0), noise)
    torch.testing.assert_close(taken.next_state, (state - level * velocity).detach())
    assert float(taken.log_prob.detach()) == 0
    moved = replay(kernel, state, velocity + 1, at(level), at(0.0), taken.next_state)
    assert float(moved.detach()) == 0 and bool((torch.autograd.grad(moved.sum(), velocity)[0] == 0).all())


def test_log_probabilities_are_means_over_elements() -> None:
    state, velocity, noise = draws(2, 3, 5)
    levels, lower = at(0.8, 0.5), at(0.6, 0.1)
    for kernel in KERNELS:
        reached = transition(kernel, state, velocity, levels, lower)
        found = step(kernel, state, velocity, levels, lower, noise).log_prob
        if kernel.name == "flow_sde":
            normal = torch.distributions.Normal(reached.mean, reached.step_std[:, None, None])
            expected = normal.log_prob(reached.mean + reached.step_std[:, None, None] * noise).mean((1, 2))
        else:
            expected = -((reached.step_std[:, None, None] * noise) ** 2).mean((1, 2))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_gradient_pulls_the_mean_to_the_state_that_was_drawn(kernel: Kernel) -> None:
    state, velocity, noise = draws(2, 6)
    velocity.requires_grad_()
    taken = step(kernel, state, velocity, at(0.8, 0.5), at(0.6, 0.1), noise)
    assert not taken.next_state.requires_grad
    reached = transition(kernel, state, velocity, at(0.8, 0.5), at(0.6, 0.1))
    stored = taken.next_state.clone().requires_grad_()
    pull, none = torch.autograd.grad(
        log_prob(kernel, stored, reached).sum(), [reached.mean, stored], allow_unused=True
    )
    assert none is None
    assert bool((pull * (taken.next_state - reached.mean) > 0).all())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@settings(max_examples=25)
@given(levels=falling, seed=st.integers(0, 999))
def test_replay_is_bit_for_bit(kernel: Kernel, levels: tuple[float, float], seed: int) -> None:
    """In fp32, with a velocity in bf16: what is scored is what is handed on, so the ratio is exactly 1."""
    state, velocity, noise = draws(2, 3, 5, seed=seed, dtype=torch.float32)
    velocity = velocity.bfloat16()
    s, t = (at(level, level) for level in levels)
    taken = step(kernel, state, velocity, s, t, noise)
    assert (
        taken.next_state.dtype
        == step(kernel, state, velocity.double(), s, t, noise).next_state.dtype
        == torch.float32
    )
    again = replay(kernel, state, velocity, s, t, taken.next_state)
    assert torch.equal(torch.exp(again - taken.log_prob), torch.ones(2))


def test_a_state_in_bf16_is_refused_because_it_moves_the_ratio() -> None:
    state, velocity, noise = draws(2, 64, dtype=torch.float32)
    s, t = at(0.5, 0.5), at(0.45, 0.45)
    taken = step(KERNELS[0], state, velocity, s, t, noise)
    rounded = replay(KERNELS[0], state, velocity, s, t, taken.next_state.bfloat16().float())
    assert float((rounded - taken.log_prob).abs().max()) > 1e-4  # beyond the clip range
    with pytest.raises(ValueError, match=r"kept in fp32, got torch\.bfloat16"):
        step(KERNELS[0], state.bfloat16(), velocity, s, t, noise)
    steps = with_trajectory(rollout(), GainPolicy((0.3, 0.3)), KERNELS[1]).trajectory
    assert steps is not None
    with pytest.raises(ValueError, match=r"next_audio: states are stored in fp32, got torch\.bfloat16"):
        replace(steps, next_audio=steps.next_audio.bfloat16())
    with pytest.raises(ValueError, match="level 0 is deterministic"):
        replace(steps, next_levels=steps.next_levels * 0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_clip_has_its_own_level(kernel: Kernel) -> None:
    state, velocity, noise = draws(2, 3, 5)
    together = step(kernel, state, velocity, at(0.8, 0.5), at(0.6, 0.1), noise)
    alone = step(kernel, state[1:], velocity[1:], at(0.5), at(0.1), noise[1:])
    torch.testing.assert_close(together.next_state[1:], alone.next_state)
    torch.testing.assert_close(together.log_prob[1:], alone.log_prob)


@given(share=st.floats(0, 1), elements=st.sampled_from([1, 300, 3000]))
def test_sound_keeps_its_share_of_the_joint_log_probability(share: float, elements: int) -> None:
    """Whatever the number of video elements: an audio log-probability that moves by d moves the joint one by
    (1 - w) d."""
    lps = []
    for shape in ((1, elements), (1, 1)):
        state, velocity, noise = draws(*shape)
        lps.append(step(KERNELS[1], state, velocity, at(0.8), at(0.6), noise).log_prob.requires_grad_())
    joint = joint_log_prob(lps[0], lps[1], share)
    by_video, by_audio = torch.autograd.grad(joint.sum(), lps)
    assert float(by_video) == pytest.approx(share) and float(by_audio) == pytest.approx(1 - share)
    assert joint.item() == pytest.approx(share * lps[0].item() + (1 - share) * lps[1].item())


def test_half_and_half_unless_said_otherwise() -> None:
    assert float(joint_log_prob(at(1.0), at(3.0))) == 2.0
    with pytest.raises(ValueError, match="video_share"):
        joint_log_prob(at(1.0), at(3.0), 1.1)


@pytest.mark.parametrize(
    ("name", "eta"), [("flow_sde", 0.0), ("cps", 1.2), ("cps", -1.0), ("dance", 0.5), ("cps", math.nan)]
)
def test_a_kernel_without_density_is_refused(name: KernelName, eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must be|kernel must be"):
        Kernel(name=name, eta=eta)


@pytest.mark.parametrize(("level", "lower"), [(0.5, 0.5), (0.5, 0.7), (1.2, 0.5), (0.5, -0.1)])
def test_levels_must_fall(level: float, lower: float) -> None:
    state, velocity, noise = draws(1, 3)
    with pytest.raises(ValueError, match="to a lower one"):
        step(KERNELS[1], state, velocity, at(level), at(lower), noise)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_normalised_log_ratio_is_the_density_ratio_centred_and_scaled(kernel: Kernel) -> None:
    """Normal densities of both policies, summed over elements: plus half the squared distance of the means in
    deviations, times std / sqrt(N)."""
    state, old, noise = draws(2, 3, 7)
    now, levels = old + 0.1 * draws(2, 3, 7, seed=1)[0], (at(0.9, 0.5), at(0.7, 0.4))
    taken = step(kernel, state, old, *levels, noise)
    found = normalised_log_ratio(kernel, state, now, old, *levels, taken.next_state)
    before, after = (transition(kernel, state, velocity, *levels) for velocity in (old, now))
    std = before.step_std[:, None, None]
    densities = [
        torch.distributions.Normal(reached.mean, std).log_prob(taken.next_state).sum((1, 2))
        for reached in (after, before)
    ]
    bias = ((after.mean - before.mean) / std).square().sum((1, 2)) / 2
    expected = (densities[0] - densities[1] + bias) * before.step_std / math.sqrt(21)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("size", [16, 1024])
def test_the_normalised_log_ratio_has_the_deviation_of_the_means_whatever_the_size(
    kernel: Kernel, size: int
) -> None:
    state, old, noise = draws(4000, size)
    now = old + 0.1 * draws(1, size, seed=1)[0]
    levels = (at(0.8).expand(4000), at(0.6).expand(4000))
    taken = step(kernel, state, old, *levels, noise)
    found = normalised_log_ratio(kernel, state, now, old, *levels, taken.next_state)
    means = [transition(kernel, state[:1], v[:1], at(0.8), at(0.6)).mean for v in (now, old)]
    rms = float((means[0] - means[1]).square().mean().sqrt())
    assert float(found.std()) == pytest.approx(rms, rel=0.05) and abs(float(found.mean())) < rms / 15


def test_the_normalised_log_ratio_of_a_deterministic_step_is_zero() -> None:
    state, old, now = draws(1, 2, 3)
    for kernel in KERNELS:
        found = normalised_log_ratio(kernel, state, now, old, at(0.5), at(0.0), state)
        assert float(found) == 0

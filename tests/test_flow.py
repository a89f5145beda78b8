"""Flow matching in closed form: path, levels, guidance, solvers."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import conditioning, present

from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales, guided_velocity
from pretrain.flow.path import (
    LevelConfig,
    draw_sigma,
    interpolate,
    release_sigmas,
    shift_sigma,
    sigma_weight,
    velocity_target,
)
from pretrain.flow.solvers import Latents, SolverName, sampling_sigmas, solve
from pretrain.randomness import generator_for
from pretrain.types import Conditioning, Velocity


@given(sigma=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_clean_and_noise_follow_from_state_and_velocity(sigma: float, seed: int) -> None:
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).double()
    level = torch.tensor(sigma).double()
    state, velocity = interpolate(clean, noise, level), velocity_target(clean, noise)
    torch.testing.assert_close(state - level * velocity, clean)
    torch.testing.assert_close(state + (1 - level) * velocity, noise)


def test_release_levels_and_weights() -> None:
    levels = release_sigmas()
    assert len(levels) == 1000 and float(levels[0]) == 1.0
    last = 1.0 + (0.003 / 1.002 - 1.0) * 999 / 1000
    assert float(levels[-1]) == pytest.approx(5 * last / (1 + 4 * last))
    weights = sigma_weight(levels, LevelConfig())
    assert float(weights.mean()) == pytest.approx(1.0) and float(weights.min()) == pytest.approx(
        0.0, abs=1e-12
    )
    assert float(levels[weights.argmax()]) == pytest.approx(0.5, abs=2e-3)


@given(level=st.floats(0.001, 0.999), shift=st.floats(0.2, 10))
def test_shift_keeps_the_ends_and_has_an_inverse(level: float, shift: float) -> None:
    tensor = torch.tensor(level, dtype=torch.float64)
    torch.testing.assert_close(shift_sigma(shift_sigma(tensor, shift), 1 / shift), tensor)
    assert float(shift_sigma(torch.tensor(1.0), shift)) == pytest.approx(1.0)


@pytest.mark.parametrize("draw", ["release", "logit_normal"])
def test_drawn_levels_lie_in_the_flow(draw: Literal["release", "logit_normal"]) -> None:
    levels = [draw_sigma(LevelConfig(draw=draw), generator_for(i)) for i in range(300)]
    assert all(0 < level <= 1 for level in levels) and len(set(levels)) > 200


@given(seed=st.integers(0, 999), shift=st.floats(0.3, 9), draw=st.sampled_from(["release", "logit_normal"]))
def test_the_shift_moves_drawn_levels(
    seed: int, shift: float, draw: Literal["release", "logit_normal"]
) -> None:
    plain, moved = (
        draw_sigma(LevelConfig(draw=draw, shift=value), generator_for(seed)) for value in (1.0, shift)
    )
    assert moved == pytest.approx(float(shift_sigma(torch.tensor(plain, dtype=torch.float64), shift)))


def test_level_config_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"levels\.shift must be above 0, got 0"):
        LevelConfig(shift=0)


def counting_model(calls: list[Conditioning]):
    """v = 1 * has text + 10 * joined + 100 * has voice: a guided velocity can be worked out by hand."""

    def velocity_of(c: Conditioning) -> Velocity:
        calls.append(c)
        value = float(c.text_kept[0]) + 10 * float(c.modalities_joined[0]) + 100 * float(c.speakers.any())
        return Velocity(torch.tensor([value]), torch.tensor([value]))

    return velocity_of


@settings(max_examples=40)
@given(*(st.sampled_from([0.0, 0.5, 2.0]) for _ in range(6)))
def test_guidance_is_the_sum_of_its_directions_and_zero_is_free(
    tv: float, ta: float, av: float, aa: float, sv: float, sa: float
) -> None:
    scales = GuidanceScales(
        text_video=tv, text_audio=ta, align_video=av, align_audio=aa, timbre_video=sv, timbre_audio=sa
    )
    calls: list[Conditioning] = []
    out = guided_velocity(counting_model(calls), conditioning(), scales)
    assert len(calls) == 1 + sum(bool(v or a) for v, a in ((tv, ta), (av, aa), (sv, sa)))
    assert float(present(out.video)) == pytest.approx(111 + tv * 101 + av * 10 + sv * 100)
    assert float(present(out.audio)) == pytest.approx(111 + ta * 101 + aa * 10 + sa * 100)


def test_directions_that_cannot_differ_cost_nothing() -> None:
    calls: list[Conditioning] = []
    silent = replace(conditioning(), speakers=torch.zeros(2, 2, 192))
    guided_velocity(counting_model(calls), silent, GuidanceScales(), joint=False)
    assert len(calls) == 2  # full and text; no voice to leave out, no second modality to mask
    calls.clear()
    guided_velocity(counting_model(calls), conditioning(), NO_GUIDANCE)
    assert len(calls) == 1


def gaussian_field(mean: float, std: float):
    """Exact velocity for data N(mean, std^2): E[eps - x0 | x_s]."""

    def field(state: Latents, s: float) -> Velocity:
        variance = (1 - s) ** 2 * std**2 + s**2
        x = present(state.audio)
        clean = mean + (1 - s) * std**2 / variance * (x - (1 - s) * mean)
        noise = s / variance * (x - (1 - s) * mean)
        return Velocity(None, noise - clean)

    return field


@pytest.mark.parametrize(("solver", "steps", "error"), [("euler", 400, 2e-2), ("unipc", 30, 2e-2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solvers_transport_noise_to_a_gaussian(
    solver: SolverName, steps: int, error: float, shift: float
) -> None:
    noise = torch.linspace(-2, 2, 9).view(1, 1, 9)
    out = solve(gaussian_field(1.5, 0.5), Latents(None, noise), steps, shift, solver)
    assert out.video is None
    torch.testing.assert_close(out.audio, 1.5 + 0.5 * noise, atol=error, rtol=0)


def test_euler_is_exact_for_a_straight_path() -> None:
    clean, noise = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    out = solve(lambda state, s: Velocity(noise - clean, None), Latents(noise, None), 3, 5.0, "euler")
    torch.testing.assert_close(out.video, clean)


def test_bad_solver_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        sampling_sigmas(0, 1.0)
    with pytest.raises(ValueError, match="did you mean 'unipc'"):
        solve(lambda state, s: Velocity(None, None), Latents(None, None), 2, 1.0, "unicp")  # type: ignore[arg-type]

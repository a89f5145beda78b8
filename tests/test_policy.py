import dataclasses

import pytest
import torch
from model_cases import audio_stream, conditioning, debug_model, present, video_stream
from torch import Tensor

from finetune.lora import GROUPS, LoraConfig, inject
from finetune.objectives.nft import OldSchedule
from finetune.policy import LoraPolicy
from finetune.types import Policy
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales, guided_velocity
from pretrain.model.shell import AVTransformer
from pretrain.sampling import lower_precision

CONFIG = LoraConfig(rank=4, alpha=8.0, targets=tuple(GROUPS))


def injected(name: str = "debug", config: LoraConfig = CONFIG) -> AVTransformer:
    return inject(debug_model(name=name), config)


def moved(parameters: list[Tensor], seed: int = 11) -> None:
    """As if trained: random steps, B away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def answers(policy: Policy, role) -> Tensor:
    velocity = policy.velocity(role, video_stream(), audio_stream(), conditioning())
    return torch.cat([present(velocity.video).flatten(), present(velocity.audio).flatten()])


def test_roles_differ_once_default_has_moved_and_only_default_carries_gradient():
    policy = LoraPolicy(injected())
    base = answers(policy, "reference")
    assert torch.equal(answers(policy, "default"), base) and torch.equal(answers(policy, "old"), base)
    moved(policy.parameters)
    default = answers(policy, "default")
    assert (default - base).abs().max() > 1e-3
    assert torch.equal(answers(policy, "old"), base) and torch.equal(answers(policy, "reference"), base)
    assert (
        default.requires_grad
        and not answers(policy, "old").requires_grad
        and not answers(policy, "reference").requires_grad
    )


def test_default_is_active_and_flags_are_as_built_after_any_role_and_any_error():
    policy = LoraPolicy(injected())
    flags = [parameter.requires_grad for parameter in policy.model.parameters()]
    moved(policy.parameters)
    expected = answers(policy, "default").detach()
    for role in ("old", "reference"):
        answers(policy, role)
        with pytest.raises(ValueError, match="got neither"):
            policy.velocity(role, None, None, conditioning())
        with pytest.raises(ValueError, match="got neither"):
            policy.guided(role, None, None, conditioning(), NO_GUIDANCE)
        assert [parameter.requires_grad for parameter in policy.model.parameters()] == flags
        assert all(
            layer.active_adapters == ["default"] and not layer.disable_adapters
            for layer in policy.layers.values()
        )
        assert torch.equal(answers(policy, "default").detach(), expected)
    with pytest.raises(ValueError, match="role must be default, old or reference, got 'teacher'"):
        policy.velocity("teacher", video_stream(), audio_stream(), conditioning())  # type: ignore[arg-type]


def test_backward_after_other_roles_is_that_of_default():
    one, other = LoraPolicy(injected()), LoraPolicy(injected())
    for policy in (one, other):
        moved(policy.parameters)
    loss = answers(one, "default").square().mean()
    for role in ("old", "reference"):
        answers(one, role)
    loss.backward()
    answers(other, "default").square().mean().backward()
    assert all(
        torch.equal(present(a.grad), present(b.grad))
        for a, b in zip(one.parameters, other.parameters, strict=True)
    )
    assert all(parameter.grad is None for parameter in one.model.parameters() if not parameter.requires_grad)


def test_guided_is_guided_velocity_of_the_role_without_gradient():
    policy = LoraPolicy(injected())
    moved(policy.parameters)
    video, audio, given, scales = (
        video_stream(),
        audio_stream(),
        conditioning(),
        GuidanceScales(text_video=2.0, align_audio=1.5),
    )
    for role in ("default", "old"):
        guided = policy.guided(role, video, audio, given, scales)
        expected = guided_velocity(lambda c, role=role: policy.velocity(role, video, audio, c), given, scales)
        assert torch.equal(present(guided.video), present(expected.video)) and torch.equal(
            present(guided.audio), present(expected.audio)
        )
        assert not present(guided.video).requires_grad and not present(guided.video).is_inference()
    plain = policy.guided("default", video, audio, given, NO_GUIDANCE)
    assert torch.equal(present(plain.video), present(policy.velocity("default", video, audio, given).video))


def test_old_keeps_its_share_and_decay_zero_copies():
    policy = LoraPolicy(injected())
    before = [value.clone() for value in policy.adapters["old"].values()]
    moved(policy.parameters)
    policy.update_old(0.25)
    for old, first, default in zip(policy.adapters["old"].values(), before, policy.parameters, strict=True):
        torch.testing.assert_close(old, 0.25 * first + 0.75 * default.detach(), rtol=1e-6, atol=1e-7)
    policy.update_old(0.0)
    assert torch.equal(answers(policy, "old"), answers(policy, "default").detach())
    policy.update_old(1.0)
    assert torch.equal(answers(policy, "old"), answers(policy, "default").detach())
    assert policy.old_updates == 3
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        policy.update_old(1.5)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (OldSchedule(slope=0.0, limit=0.0), {0: 0.0, 1: 0.0, 1000: 0.0}),
        (OldSchedule(flat_steps=0, slope=0.001, limit=0.5), {0: 0.0, 100: 0.1, 500: 0.5, 5000: 0.5}),
        (
            OldSchedule(flat_steps=75, slope=0.0075, limit=0.999),
            {0: 0.0, 74: 0.0, 75: 0.0, 76: 0.0075, 175: 0.75, 1000: 0.999},
        ),
        (OldSchedule(slope=0.1, limit=0.5), {0: 0.0, 3: 0.3, 9: 0.5}),
    ],
)
def test_schedules_of_the_old_policy(schedule, points):
    for update, decay in points.items():
        assert schedule.decay(update) == pytest.approx(decay, abs=1e-12)
    with pytest.raises(ValueError, match=r"old\.limit must be at least 0 and below 1"):
        OldSchedule(limit=1.0)


def test_average_holds_adapters_only_and_is_swapped_in():
    policy = LoraPolicy(injected(), ema_decay=0.5)
    assert len(policy.ema.weights) == len(policy.parameters)
    first = [parameter.detach().clone() for parameter in policy.parameters]
    moved(policy.parameters)
    policy.update_ema()  # warmed up: 0.1 of itself
    own = [parameter.detach().clone() for parameter in policy.parameters]
    with pytest.raises(KeyError), policy.averaged():
        for parameter, start, now in zip(policy.parameters, first, own, strict=True):
            torch.testing.assert_close(parameter.detach(), 0.1 * start + 0.9 * now, rtol=1e-6, atol=1e-7)
        raise KeyError
    assert all(torch.equal(parameter, now) for parameter, now in zip(policy.parameters, own, strict=True))


def test_state_comes_back_exactly():
    policy = LoraPolicy(injected())
    moved(policy.parameters)
    policy.update_old(0.3)
    policy.update_ema()
    moved(policy.parameters, seed=12)
    saved = {name: _cloned(value) for name, value in policy.state_dict().items()}
    fresh = LoraPolicy(inject(debug_model(), dataclasses.replace(CONFIG, seed=9)))
    assert not torch.equal(fresh.parameters[0], policy.parameters[0])
    fresh.load_state_dict(saved)
    for role in ("default", "old", "reference"):
        assert torch.equal(answers(fresh, role), answers(policy, role))
    with fresh.averaged(), policy.averaged():
        assert torch.equal(answers(fresh, "default"), answers(policy, "default"))
    assert (fresh.old_updates, fresh.ema.updates) == (1, 1)


def _cloned(value):
    if isinstance(value, dict):
        return {name: _cloned(item) for name, item in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def test_refuses_models_without_adapters_lowered_adapters_and_other_trained_weights():
    with pytest.raises(ValueError, match="no adapters"):
        LoraPolicy(debug_model())
    with pytest.raises(ValueError, match="adapters stay fp32"):
        LoraPolicy(lower_precision(injected(), torch.bfloat16))
    model = injected()
    model.head.linear.get_parameter("base_layer.weight").requires_grad_(True)
    with pytest.raises(ValueError, match="exactly the adapter `default`"):
        LoraPolicy(model)

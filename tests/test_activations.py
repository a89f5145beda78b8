import pytest
import torch
from kept_memory import kept_bytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model.args import ModelArgs
from pretrain.model.attention import AttentionPlan
from pretrain.model.blocks import Context, FusionBlock
from pretrain.titan.activations import checkpointed

WIDTH, HEADS, TOKENS, TEXT = 64, 2, 1024, 16
TOKEN_BYTES = TOKENS * WIDTH * 4  # of a [1, TOKENS, WIDTH] tensor, fp32


def fusion_block() -> FusionBlock:
    torch.manual_seed(0)
    return FusionBlock(ModelArgs(width=WIDTH, num_heads=HEADS, ffn_width=4 * WIDTH))


def inputs() -> tuple[Tensor, tuple[Tensor, ...], Tensor, AttentionPlan, Context]:
    """Tokens enough for the CPU's flash kernel."""
    generator = torch.Generator().manual_seed(1)
    x, text = (torch.randn(1, size, WIDTH, generator=generator) for size in (TOKENS, TEXT))
    modulation = 0.1 * torch.randn(6, 1, 1, 1, WIDTH, generator=generator)
    turns = torch.polar(
        torch.ones(TOKENS, 1, WIDTH // HEADS // 2),
        torch.randn(TOKENS, 1, WIDTH // HEADS // 2, generator=generator),
    )
    return (
        x,
        (modulation,),
        turns,
        AttentionPlan(TOKENS, 0, apart=False, mask=None),
        Context(text, None, None),
    )


def gradients(block: nn.Module) -> list[Tensor]:
    x, *rest = inputs()
    x.requires_grad_()
    block(x, *rest).square().mean().backward()
    assert x.grad is not None
    return [x.grad, *(parameter.grad for parameter in block.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradients_are_the_same_bit_for_bit(mode):
    expected, found = gradients(fusion_block()), gradients(checkpointed(fusion_block(), mode))
    assert len(expected) == len(found) > 20
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def kept(mode: str) -> float:
    """In token tensors, without the block's answer."""
    block = checkpointed(fusion_block(), mode)
    x, *rest = inputs()
    x.requires_grad_()
    return kept_bytes(lambda: block(x, *rest)) / TOKEN_BYTES - 1


def test_full_keeps_nothing_selective_the_attention_output():
    assert kept("full") == pytest.approx(0, abs=0.01)
    assert kept("selective") == pytest.approx(1, abs=0.1)  # the output, and a number per query and head
    assert kept("none") > 20


def test_selective_does_not_attend_twice():
    block, calls = checkpointed(fusion_block(), "selective"), []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
                calls.append(args[0].shape[-2])
            return func(*args, **(kwargs or {}))

    with Count():
        gradients(block)
    assert calls.count(TOKENS) == 1

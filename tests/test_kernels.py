"""What the model spells out for a device or a compiler equals torch's own operators, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretrain.model.scaled_attention import scaled_attention
from pretrain.model.width_norm import WidthNorm


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return torch.autograd.grad(output, inputs, weights)


@settings(max_examples=20, deadline=None)
@given(queries=st.integers(1, 9), keys=st.integers(1, 9), masked=st.booleans(), seed=st.integers(0, 99))
def test_attention_by_matmuls_equals_sdpa(queries: int, keys: int, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 3, size, 8, requires_grad=True) for size in (queries, keys, keys))
    mask = None
    if masked:
        mask = torch.rand(2, 1, queries, keys) > 0.3
        mask[..., 0] = True
    ours, theirs = scaled_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for a, b in zip(gradients(ours, q, k, v), gradients(theirs, q, k, v), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_attention_by_matmuls_in_bf16_stays_within_a_percent() -> None:
    """Its scores are rounded to bf16, the flash kernel's are not: 0.5 % of the output here, where flash has
    0.2 %."""
    torch.manual_seed(0)
    exact = [torch.randn(1, 2, 300, 32).bfloat16().float() for _ in range(3)]
    truth = F.scaled_dot_product_attention(exact[0], exact[1], exact[2])
    answer = scaled_attention(*(part.bfloat16() for part in exact), mask=None)
    assert (answer.float() - truth).norm() < 1e-2 * truth.norm()


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 65), rows=st.integers(1, 7), seed=st.integers(0, 99))
def test_width_norm_equals_rms_norm(width: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    norm, x = (
        WidthNorm(width, eps=1e-6).double(),
        torch.randn(2, rows, width, dtype=torch.float64, requires_grad=True),
    )
    torch.nn.init.normal_(norm.weight)
    ours, theirs = norm(x), F.rms_norm(x, (width,), norm.weight, 1e-6)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for a, b in zip(gradients(ours, x, norm.weight), gradients(theirs, x, norm.weight), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_width_norm_in_lower_precision_is_as_close_as_rms_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = torch.randn(40, 192, dtype=torch.float64, requires_grad=True)
    truth = F.rms_norm(exact, (192,), None, 1e-6)
    (true_grad,) = gradients(truth, exact)
    norm = WidthNorm(192, eps=1e-6).to(dtype)
    low = exact.detach().to(dtype).requires_grad_()
    errors = []
    for answer in (norm(low), F.rms_norm(low, (192,), norm.weight, 1e-6)):
        (grad,) = gradients(answer, low)
        errors.append(
            (
                (answer.double() - truth).norm() / truth.norm(),
                (grad.double() - true_grad).norm() / true_grad.norm(),
            )
        )
    assert errors[0][0] < 1.6 * errors[1][0] + 1e-6
    assert errors[0][1] < 1.6 * errors[1][1] + 1e-6

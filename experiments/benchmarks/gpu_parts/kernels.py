"""torch's attention kernels and the model's choice at its sizes: seconds, share of the peak, error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.benchmarks.gpu_parts.finding import Figures, OutOfBounds
from experiments.benchmarks.gpu_parts.sizes import PartSize
from experiments.benchmarks.harness import peak_matmul_flops, repeated
from pretrain.config import one_line
from pretrain.model.scaled_attention import scaled_attention

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
MODELS = "the model's"  # what pretrain.model.scaled_attention takes
MOST_SCORES = 1 << 28  # that `math` is asked to hold, of all heads
LIMIT = 0.02  # error relative to the norm of what is exact; 0.2 to 0.4 % on a CPU at debug size
REPEATS, QUERIES = 5, 64  # queries: that are held against fp64
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def kernels(size: PartSize, device: torch.device) -> Iterator[Figures]:
    """Joint self-attention and attention to a padded text in bf16, forward and both passes.

    Raises OutOfBounds for a kernel that is wrong by more than LIMIT.
    """
    torch.manual_seed(0)
    heads, width, tokens, states = size.attention
    peak = peak_matmul_flops(torch.bfloat16, device, sides=size.matmul_sides)
    mask = (torch.arange(states, device=device) < 3 * states // 4)[None, None, None]
    wrong = []
    for case, keys, seen in (("joint", tokens, None), ("text", states, mask)):
        q, k, v = (
            torch.randn(1, heads, count, width, device=device, dtype=torch.bfloat16, requires_grad=True)
            for count in (tokens, keys, keys)
        )
        for name in (MODELS, *KERNELS):
            if name == "math" and heads * tokens * keys > MOST_SCORES:
                continue
            figures = _figures(name, (q, k, v, seen), peak, device)
            yield Figures(f"{case}, {name}", figures, _words(case, name, figures))
            if not figures.get("error", 0.0) <= LIMIT:
                wrong.append(f"{case}, {name}: {figures['error']} of the norm from fp64, at most {LIMIT}")
    if wrong:
        raise OutOfBounds("; ".join(wrong))


def _figures(
    name: str, given: tuple[Tensor, Tensor, Tensor, Tensor | None], peak: float, device: torch.device
) -> dict[str, Any]:
    q, k, v, mask = given
    attend: Attend = scaled_attention if name == MODELS else F.scaled_dot_product_attention
    flop = 4 * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]

    def both() -> None:
        grads = torch.autograd.grad(attend(q, k, v, mask).sum(), (q, k, v))
        assert len(grads) == 3

    with nullcontext() if name == MODELS else sdpa_kernel(KERNELS[name]):
        try:
            with torch.no_grad():
                forward_s = min(repeated(lambda: attend(q, k, v, mask), REPEATS, device))
                answer = attend(q, k, v, mask)
            both_s = min(repeated(both, REPEATS, device))
        except RuntimeError as error:  # a kernel that does not take these inputs, or not on this device
            return {"absent": one_line(error)[:200]}
    return {
        "forward_s": float(f"{forward_s:.4g}"),
        "forward_and_backward_s": float(f"{both_s:.4g}"),
        "forward_share_of_ceiling": round(flop / forward_s / peak, 3),
        "share_of_ceiling": round(3 * flop / both_s / peak, 3),
        "error": float(f"{error_of(answer, q, k, v, mask):.3g}"),
    }


def error_of(answer: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> float:
    """|answer - exact| / |exact| of some queries, exact in fp64 on the same device."""
    with torch.no_grad():
        rows = torch.linspace(0, q.shape[2] - 1, min(QUERIES, q.shape[2]), device=q.device).long()
        scores = q[:, :, rows].double() @ k.double().transpose(2, 3) * q.shape[3] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        exact = scores.softmax(-1) @ v.double()
        return float((answer[:, :, rows] - exact).norm() / exact.norm())


def _words(case: str, name: str, figures: dict[str, Any]) -> str:
    if "absent" in figures:
        return ""
    spent_ms, share = 1000 * figures["forward_and_backward_s"], figures["share_of_ceiling"]
    return f"{case}, {name}: {spent_ms:.3g} ms, {share:.0%} of the peak"

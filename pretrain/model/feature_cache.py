"""What the blocks add to the tokens, kept from one sampling step for later ones.

Blocks are residual: their answer is the tokens plus what they add, which changes slowly from step to step
(TeaCache, Liu et al. 2024, arXiv 2411.19108; FORA, Selvaraju et al. 2024, arXiv 2407.01425). A step that
reuses it embeds its own latents, adds what was kept, and goes through the heads under its own sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from torch import Tensor, nn

from pretrain.types import Conditioning, Stream, Velocity

TokenPair = tuple[Tensor | None, Tensor | None]  # (video, audio) [B, N, width] each; None = absent


class PassFeatures:
    """Of one forward pass of a step: the conditioned one, or one of a guidance direction."""

    def __init__(self) -> None:
        self.added: TokenPair | None = None
        self.reusing = self.keeping = False

    def keep(self, before: TokenPair, after: TokenPair) -> None:
        """Take what the blocks have added, if a later step reuses it."""
        if self.keeping:
            pairs = zip(before, after, strict=True)
            video, audio = (None if x is None or y is None else y - x for x, y in pairs)
            self.added = video, audio

    def added_to(self, tokens: TokenPair) -> TokenPair:
        """The tokens as if they had gone through the blocks."""
        assert self.added is not None
        pairs = zip(tokens, self.added, strict=True)
        video, audio = (None if x is None or more is None else x + more for x, more in pairs)
        return video, audio


class FeatureCache:
    """Of one sampling. computed: whether each step computes, as of `flow.reuse.computed_steps`.

    A step's passes are told apart by their order, which guidance keeps. On ranks that hold one model together
    each has its own part.
    """

    def __init__(self, computed: Sequence[bool]) -> None:
        self.computed, self.step = list(computed), -1
        self._passes: list[PassFeatures] = []
        self._taken = 0  # passes of this step

    def begin_step(self) -> Self:
        """Called before the passes of each step."""
        self.step, self._taken = self.step + 1, 0
        computes = self.computed[self.step]
        for one in self._passes:
            one.reusing = not computes
            one.keeping = computes and self._reused_next
            if computes:
                one.added = None  # its memory is free while the blocks compute
        return self

    def next_pass(self) -> PassFeatures:
        """Features of the step's next pass. Raises RuntimeError where none were computed to be reused."""
        if self._taken == len(self._passes):
            if not self.computed[self.step]:
                raise RuntimeError(f"step {self.step} has more passes than the step whose features it reuses")
            new = PassFeatures()
            new.keeping = self._reused_next
            self._passes.append(new)
        self._taken += 1
        return self._passes[self._taken - 1]

    @property
    def _reused_next(self) -> bool:
        return not all(self.computed[self.step + 1 : self.step + 2])


def velocity_of_pass(
    model: Callable[..., Velocity] | nn.Module,
    video: Stream | None,
    audio: Stream | None,
    cache: FeatureCache | None,
) -> Callable[[Conditioning], Velocity]:
    """The model at one state as guidance asks it, each pass with its own features."""
    if cache is None:
        return lambda conditioning: model(video, audio, conditioning)
    return lambda conditioning: model(video, audio, conditioning, cache.next_pass())

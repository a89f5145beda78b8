"""Train a SyncNet contrastively: match each stretch of mouth frames with its stretch of sound.

The similarity of two stretches is the mean over 12 consecutive windows, as the zero-lag reward averages over
a clip; single windows of 0.2 s are too much alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.options import NOT_NEGATIVE, POSITIVE, SHARE, check_bounds
from rewards.sync.augment import augment_crops, augment_sound
from rewards.sync.layers import MINI, SyncNetArgs
from rewards.sync.syncnet import SyncNet
from rewards.sync.windows import SAMPLES_PER_FRAME, WINDOW_FRAMES, SyncInput, windows_of_sound

TAIL_SAMPLES = 400  # the last window's last MFCC column looks this far


@dataclass(frozen=True, kw_only=True)
class SyncTrainConfig:
    """How one network is trained. Raises ValueError for sizes that leave nothing to compare."""

    steps: int = 120
    clips_per_step: int = 8
    windows: int = 40  # of each clip per step; one more frame of context at either end
    stretch: int = 12  # consecutive windows whose mean similarity is compared
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps
    temperature: float = 0.07
    sound_jitter: int = 80  # samples; clips start anywhere within a hundredth of a second

    def __post_init__(self) -> None:
        if self.steps < 1 or self.clips_per_step < 2 or not 1 <= self.stretch < self.windows:
            raise ValueError(
                f"SyncTrainConfig: steps {self.steps}, clips_per_step {self.clips_per_step}, stretch "
                f"{self.stretch} of {self.windows} "
                "windows; use at least 1 step, 2 clips, and a stretch shorter than the windows"
            )
        bounds = {"lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "warmup": SHARE, "temperature": POSITIVE}
        check_bounds(self, {**bounds, "sound_jitter": NOT_NEGATIVE}, "SyncTrainConfig: ")


def train_syncnet(
    config: SyncTrainConfig,
    clips: Sequence[SyncInput],
    *,
    seed: int = 0,
    args: SyncNetArgs = MINI,
    progress: Callable[[int, float], None] | None = None,
) -> SyncNet:
    """A network in eval mode; `progress(step, loss)` is called after every step (from 1). Same input and
    threads, same weights.

    Raises ValueError when no two clips are long enough for `config.windows` windows.
    """
    needed = config.windows + WINDOW_FRAMES - 1
    usable = [
        clip
        for clip in clips
        if min(len(clip.crops), (len(clip.sound) - TAIL_SAMPLES) // SAMPLES_PER_FRAME) >= needed
    ]
    if len(usable) < config.clips_per_step:
        raise ValueError(
            f"{len(usable)} of {len(clips)} clips have {needed} frames; a step needs {config.clips_per_step}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SyncNet(args)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    net.train()
    for step, batch in enumerate(_draws(len(usable), config, rng), start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _rate(step, config)
        lips, sound_inputs = zip(
            *(_excerpt(usable[index], config, rng, args.log_floor) for index in batch), strict=True
        )
        v = net.embed_lips(torch.stack(lips))
        a = net.embed_sound(torch.from_numpy(np.concatenate(sound_inputs))).unflatten(0, v.shape[:2])
        loss = stretch_loss(v, a, config.stretch, config.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step, loss.item())
    return net.eval()


def stretch_loss(v: Tensor, a: Tensor, stretch: int, temperature: float) -> Tensor:
    """Symmetric cross entropy of matching stretches over all clips; v, a [B, n, D]."""
    similarity = (
        stretch_similarity(F.normalize(v, dim=-1), F.normalize(a, dim=-1), stretch)
        .flatten(2, 3)
        .flatten(0, 1)
        / temperature
    )
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def stretch_similarity(v: Tensor, a: Tensor, stretch: int) -> Tensor:
    """[B, m, B, m] with m = n - stretch + 1: mean over t of v[b, i + t] . a[c, j + t]."""
    products = torch.einsum("bid,cjd->bicj", v, a)
    count = v.shape[1] - stretch + 1
    total = products[:, :count, :, :count]
    for t in range(1, stretch):
        total = total + products[:, t : t + count, :, t : t + count]
    return total / stretch


def _draws(num_clips: int, config: SyncTrainConfig, rng: np.random.Generator) -> Iterator[list[int]]:
    """Different clips in every step; all of them in turn, in random order."""
    queue: list[int] = []
    for _ in range(config.steps):
        if len(queue) < config.clips_per_step:
            queue = [int(index) for index in rng.permutation(num_clips)]
        yield [queue.pop() for _ in range(config.clips_per_step)]


def _excerpt(
    clip: SyncInput, config: SyncTrainConfig, rng: np.random.Generator, log_floor: float | None
) -> tuple[Tensor, np.ndarray]:
    """Crops [3, n + 4, S, S] and sound windows [n, 1, 13, 20] from a random place of the clip.

    The random place varies which frame a 24 fps clip repeats.
    """
    needed = config.windows + WINDOW_FRAMES - 1
    frames = min(len(clip.crops), (len(clip.sound) - TAIL_SAMPLES) // SAMPLES_PER_FRAME)
    first = int(rng.integers(frames - needed + 1))
    start = max(
        0, first * SAMPLES_PER_FRAME + int(rng.integers(-config.sound_jitter, config.sound_jitter + 1))
    )
    sound = augment_sound(clip.sound[start : start + needed * SAMPLES_PER_FRAME + TAIL_SAMPLES], rng)
    return augment_crops(clip.crops[first : first + needed], rng), windows_of_sound(sound, log_floor)[
        : config.windows
    ]


def _rate(step: int, config: SyncTrainConfig) -> float:
    """Linear warm-up, then a half cosine to zero."""
    warmup = max(1, round(config.warmup * config.steps))
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, config.steps - warmup))))

"""How a data set is encoded into latents."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.config import SHARE, check_bounds
from pretrain.data.manifest import MAX_BAD_FRACTION
from pretrain.data.stream.buckets import BucketConfig
from pretrain.data.stream.sample import DTYPES


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How sets are encoded and stored."""

    audio_only_sets: tuple[str, ...] = ("audio_only", "hq_audio")  # only the sound of these rows is used
    fps: float = 24.0  # clips of another rate are brought to this one
    latent_dtype: str = "float32"  # float16 or bfloat16 halve the disk at full size
    rows_per_shard: int = 128  # a unit of work; about 1.8 GB at full size
    max_bad_fraction: float = MAX_BAD_FRACTION
    batch_size: int = 32  # clips of one shape that the codecs take together; at full size 1 or 2
    num_readers: int = 2  # threads that read media
    buckets: BucketConfig = field(default_factory=BucketConfig)

    def __post_init__(self) -> None:
        if self.latent_dtype not in DTYPES:
            raise ValueError(f"latent_dtype: unknown {self.latent_dtype!r}; valid: {', '.join(DTYPES)}")
        if min(self.rows_per_shard, self.batch_size, self.num_readers) < 1 or not 0 < self.fps < float("inf"):
            raise ValueError("rows_per_shard, batch_size, num_readers and fps must be positive")
        check_bounds(self, {"max_bad_fraction": SHARE})

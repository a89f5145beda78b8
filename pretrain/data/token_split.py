"""Whether encoded data sets split over the ranks of a context group."""

from __future__ import annotations

from collections.abc import Mapping

from pretrain.data.sample_set import SampleSet
from pretrain.model.context_parallel import check_split


def check_sets_split(sets: Mapping[str, SampleSet], patch_size: int, context: int) -> None:
    """Raises ValueError naming the first set with a clip size whose tokens do not split over `context` ranks."""
    for name, source in sets.items() if context > 1 else ():
        for members in source.buckets.values():
            sample = source.samples[int(members[0])]
            frames, rows, columns = (0, 0, 0) if sample.video is None else sample.video.shape[1:]
            audio = 0 if sample.audio is None else sample.audio.shape[1]
            check_split(frames, rows // patch_size, columns // patch_size, audio, context, f"data set {name!r}")

"""Integrated loudness by FFmpeg's `ebur128` (ITU-R BS.1770-4, EBU R 128), and the gain to a common one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import av
import numpy as np
from av.filter import Graph

TARGET_LUFS = -23.0
HEADROOM_DB = 1.0  # below full scale, for what the encoder adds
SILENT_LUFS = -69.9  # ebur128 answers -70 where nothing passes its gate
RATE_HZ = 48_000
_BLOCK = 4800


def integrated_lufs(waveform: np.ndarray) -> float:
    """LUFS of float [2, N] at 48 kHz; -inf where it is silent, or shorter than the 0.4 s of a block."""
    graph = Graph()
    source = graph.add_abuffer(sample_rate=RATE_HZ, format="fltp", layout="stereo")
    meter, sink = graph.add("ebur128", "metadata=1"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    found = -math.inf
    for start in range(0, waveform.shape[1], _BLOCK):
        block = np.ascontiguousarray(waveform[:, start : start + _BLOCK], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = RATE_HZ, start
        graph.push(frame)
        found = _drained(graph, found)
    graph.push(None)
    found = _drained(graph, found)
    return found if found > SILENT_LUFS else -math.inf


def common_gains(waveforms: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """(gain of each sound [2, N], the loudness that all then have in LUFS).

    -23 LUFS, or as much less as keeps the loudest peak below full scale, since clips of unequal loudness
    cannot be compared. A silent sound keeps its samples.
    """
    found = [integrated_lufs(waveform) for waveform in waveforms]
    reachable = [
        lufs - 20 * math.log10(max(float(np.abs(waveform).max()), 1e-9)) - HEADROOM_DB
        for lufs, waveform in zip(found, waveforms, strict=True)
        if math.isfinite(lufs)
    ]
    target = min([TARGET_LUFS, *reachable])
    return [10 ** ((target - lufs) / 20) if math.isfinite(lufs) else 1.0 for lufs in found], target


def _drained(graph: Graph, found: float) -> float:
    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return found
        found = float(frame.metadata.get("lavfi.r128.I", found))

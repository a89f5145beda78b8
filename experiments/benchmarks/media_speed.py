"""Clips a second of our reader beside plain PyAV: `python -m experiments.benchmarks.media_speed CLIPS`.

`read_media` at the files' own rates (timestamps, orientation, aspect, limits, downmix) and a bare loop that
decodes the same streams to RGB and float samples read the same clips turn by turn in one process, one thread
each. A ratio of 0.9 means that our reader takes 11 % longer; its interval is over rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from experiments.benchmarks.harness import CPU, facts, make_parser, parse, race, ratio, write
from experiments.scoring.clips import list_clips
from pretrain.media.read import read_media


def by_reader(path: Path) -> int:
    """Frames that `read_media` returns."""
    media = read_media(path, fps=None, sample_rate_hz=None)
    return 0 if media.frames is None else len(media.frames)


def by_pyav(path: Path) -> int:
    """Frames of the first picture stream, decoded to RGB; the first sound's samples are decoded too."""
    to_rgb, frames, sounds = VideoReformatter(), [], []
    with av.open(str(path), options={"threads": "1"}) as container:
        streams = [*container.streams.video[:1], *container.streams.audio[:1]]
        for stream in streams:
            stream.codec_context.thread_count = 1
        for packet in container.demux(streams):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    frames.append(to_rgb.reformat(frame, format="rgb24").to_ndarray())
                elif isinstance(frame, av.AudioFrame):
                    sounds.append(frame.to_ndarray())
    return len(frames)


def speed(paths: Sequence[Path], budget_s: float) -> dict[str, Any]:
    """`{clips, frames, ours, pyav: clips/s in the median, ours_by_pyav: {ratio, low, high, rounds}}`.

    Raises ValueError for no clips, MediaError for one that cannot be read.
    """
    if not paths:
        raise ValueError("no clips to read; give a folder of clips with picture and sound")
    frames = sum(map(by_reader, paths))
    ours, plain = race(lambda: _all(by_reader, paths), lambda: _all(by_pyav, paths), budget_s, CPU)
    return {
        "clips": len(paths),
        "frames": frames,
        "ours": round(len(paths) / sorted(ours)[len(ours) // 2], 2),
        "pyav": round(len(paths) / sorted(plain)[len(plain) // 2], 2),
        "ours_by_pyav": ratio(ours, plain),
    }


def _all(read: Callable[[Path], int], paths: Sequence[Path]) -> None:
    for path in paths:
        read(path)


def main() -> None:
    parser = make_parser(__doc__, out_required=False)
    parser.add_argument("clips", type=Path, help="what `nava score` takes; clips with picture and sound")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--budget-s", type=float, default=30.0, help="seconds of measuring")
    options = parse(parser)
    paths = [file.path for file in list_clips(options.clips)[: options.limit]]
    found = facts("av") | speed(paths, options.budget_s)
    times = found["ours_by_pyav"]
    print(f"{found['clips']} clips, {found['frames']} frames; clips/s ours {found['ours']}", end=", ")
    print(f"plain PyAV {found['pyav']}: {times['ratio']} times ({times['low']} to {times['high']})")
    write(found, options.out)


if __name__ == "__main__":
    main()

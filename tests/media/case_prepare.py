"""Cases of clips as `nava prepare` cuts them: the pictures and sounds that the reader of clips gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from case_clips import SYNC
from case_world import Line, World

from experiments.preparation.cutting import Piece
from experiments.preparation.pieces import cut_pieces
from pretrain.media.limits import LOCAL_LIMITS
from pretrain.media.passing import PassingPictures
from pretrain.media.read import read_media

FPS, SIDE = 24.0, 4096


def prepared_lines(world: World) -> Iterator[Line]:
    """Each clip whole, as one piece: ticks and samples that are not those of `read_media`."""
    for file in SYNC:
        path = world.cases / file
        media = read_media(path, fps=FPS, sample_rate_hz=None)
        sound = read_media(path, sample_rate_hz=None, want_video=False)
        passing = PassingPictures(path)
        for _ in passing:
            pass
        shown = passing.shown
        piece = Piece(float(shown.times[0]), shown.num_ticks(FPS))
        (cut,) = cut_pieces(path, [piece], shown, FPS, SIDE, LOCAL_LIMITS)
        assert media.frames is not None and media.waveform is not None and sound.waveform is not None
        alike = cut.frames.shape == media.frames.shape
        others = int((cut.frames != media.frames).any(axis=(1, 2, 3)).sum()) if alike else len(media.frames)
        first = round(piece.start_s * sound.sample_rate_hz)
        heard = np.pad(sound.waveform, (max(0, -first), 0))[max(0, first) :]
        both = min(len(heard), len(media.waveform))
        off = float(np.abs(heard[:both] - media.waveform[:both]).max())
        measured = f"{others} of {len(media.frames)} pictures, samples {off:.2g}, mended {dict(cut.mended)}"
        right = f"0 pictures, samples 0, mended {dict(media.mended)}"
        said = {name: count for name, count in media.mended.items() if name.endswith("frames")}
        yield Line(file, "prepare", measured, right, others == 0 and off < 1e-6 and said == cut.mended)

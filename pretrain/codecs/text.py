"""The mini's frozen text encoder: hashed byte n-grams, no download and no learned weights.

A prompt is cut into pieces (words, punctuation marks, single CJK characters, and each of <S> <extra_id_2>
<E>), one context vector per piece, so that a prompt is about 25 tokens long. A piece's vector is the sum of
random signs drawn from the hash of its byte n-grams and of the whole piece (the idea of fastText and CANINE:
no vocabulary, any UTF-8, different words nearly orthogonal, yet words with common parts share some). What
self-attention would add in a real encoder is added in closed form: a share of the neighbours ("red hair" is
not "red shirt"), the position, and for spoken words which span they belong to, with the position counted from
the span's start, so that a spoken word looks the same wherever the sentence puts it. Signs come from
SHAKE-256 and not from a random generator: the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from pretrain.codecs.base import EncodedText
from pretrain.prompt import SPEECH_END, SPEECH_START, TIMBRE, ParsedPrompt, with_timbre_tokens

_MARKS = (SPEECH_START, SPEECH_END, TIMBRE)
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_PIECE = re.compile("|".join(map(re.escape, _MARKS)) + rf"|[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_LONGEST_NGRAM = 4
# Norms of the parts of a token's vector beside the piece's own, which has norm 1.
_NEIGHBOUR, _POSITION, _SPAN = 0.25, 0.35, 0.6

MAX_WIDTH = 65_536


class HashedTextEncoder:
    """Implements `TextEncoder`. Same prompt, same states: batching, padding and machine do not matter."""

    def __init__(self, width: int = 256, max_tokens: int = 512) -> None:
        if not 64 <= width <= MAX_WIDTH or width % 8:
            raise ValueError(f"text width: {width}; set a multiple of 8, 64 to {MAX_WIDTH}")
        if not 1 <= max_tokens <= MAX_WIDTH:
            raise ValueError(f"max_tokens: {max_tokens}; set 1 to {MAX_WIDTH}")
        self.width = width
        self.max_tokens = max_tokens
        self._encode_one = lru_cache(maxsize=8192)(self._encode_text)

    def encode(self, prompts: Sequence[ParsedPrompt]) -> EncodedText:
        """States of rows with mean square 1; ValueError for 0 or more than `max_tokens` pieces."""
        encoded = [self._encode_one(with_timbre_tokens(prompt)) for prompt in prompts]
        length = max((len(states) for states, _ in encoded), default=0)
        num_spans = max((len(positions) for _, positions in encoded), default=0)
        states = torch.zeros(len(encoded), length, self.width)
        mask = torch.zeros(len(encoded), length, dtype=torch.bool)
        speaker_positions = torch.full((len(encoded), num_spans), -1, dtype=torch.int64)
        for row, (values, positions) in enumerate(encoded):
            states[row, : len(values)] = torch.from_numpy(values)
            mask[row, : len(values)] = True
            speaker_positions[row, : len(positions)] = torch.tensor(positions, dtype=torch.int64)
        return EncodedText(states, mask, speaker_positions)

    def check(self, prompt: ParsedPrompt) -> None:
        """Raises ValueError for 0 or more than `max_tokens` pieces."""
        self._pieces(with_timbre_tokens(prompt))

    def _pieces(self, text: str) -> list[str]:
        pieces = split_pieces(text)
        if not pieces or len(pieces) > self.max_tokens:
            raise ValueError(
                f"prompt of {len(pieces)} text tokens; give 1 to {self.max_tokens}: {text[:60]!r}"
            )
        return pieces

    def _encode_text(self, text: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """[S, D] states of a text with its timbre tokens, and the timbre tokens' indices."""
        pieces = self._pieces(text)
        base = np.stack([piece_vector(piece, self.width) for piece in pieces])
        states = base.copy()
        states[1:] += _NEIGHBOUR * base[:-1]
        states[:-1] += _NEIGHBOUR * base[1:]
        spans = [(index, span) for index, span in enumerate(_span_of_each(pieces)) if span >= 0]
        positions = np.arange(len(pieces))
        for index, span in spans:
            states[index] += _SPAN * _signs(f"inside span {span}", self.width)
            positions[index] = 0 if pieces[index] == SPEECH_START else positions[index - 1] + 1
        states += _POSITION * _sinusoid(positions, self.width)
        states *= np.sqrt(self.width) / np.linalg.norm(states, axis=1, keepdims=True)
        return states.astype(np.float32), tuple(
            index for index, piece in enumerate(pieces) if piece == TIMBRE
        )


def split_pieces(text: str) -> list[str]:
    """Words, punctuation marks, single CJK characters and span marks, in order; white space is left out."""
    return _PIECE.findall(text)


@lru_cache(maxsize=65536)
def piece_vector(piece: str, width: int) -> np.ndarray:
    """[D] vector of norm about 1: half its energy from the piece, half from its case-folded byte n-grams."""
    whole = _signs(f"piece {piece}", width)
    if piece in _MARKS:
        return whole
    parts = np.sum([_signs(ngram, width) for ngram in _ngrams(piece)], axis=0)
    parts /= max(float(np.linalg.norm(parts)), 1e-6)
    return (whole + parts) / np.sqrt(2.0)


def _ngrams(piece: str) -> Iterator[bytes]:
    # word boundaries are part of n-grams
    data = b"\x02" + piece.casefold().encode("utf-8", "surrogatepass") + b"\x03"
    for size in range(1, _LONGEST_NGRAM + 1):
        for start in range(len(data) - size + 1):
            yield data[start : start + size]


@lru_cache(maxsize=65536)
def _signs(key: str | bytes, width: int) -> np.ndarray:
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else b"ngram " + key
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(data).digest(width // 8), dtype=np.uint8))
    return (2.0 * bits - 1.0) / np.sqrt(width)


def _span_of_each(pieces: Sequence[str]) -> list[int]:
    """Index of each piece's speech span, marks included; -1 outside."""
    spans, count, inside = [], 0, False
    for piece in pieces:
        inside = inside or piece == SPEECH_START
        spans.append(count if inside else -1)
        if piece == SPEECH_END:
            inside, count = False, count + 1
    return spans


def _sinusoid(positions: np.ndarray, width: int) -> np.ndarray:
    """[S, D] rows of norm 1; wave lengths from 6 to 6000 tokens."""
    angles = positions[:, None] * (1000.0 ** -(np.arange(width // 2) / (width // 2)))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(width / 2)

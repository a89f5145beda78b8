"""In generation, reference i is the voice of span i, and a span without one gets none."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pretrain.codecs.text import HashedTextEncoder
from pretrain.generation.conditions import conditioning_of
from pretrain.prompt import PromptRow, parse

VOICES = {Path(name): torch.full((192,), float(value)) for value, name in enumerate("abc", start=1)}


def row(*references: str) -> PromptRow:
    prompt = parse("<S>one<E> then <S>two<E>", references)
    return PromptRow(
        prompt,
        None,
        tuple(Path(name) if name else None for name in prompt.references),
        None,
        "-".join(references),
    )


@pytest.mark.parametrize("pairs", [[("a", "b"), ("b", "a")], [("", "c"), ("c", "")], [("a",), ()]])
def test_voices_stand_at_their_spans(pairs: list[tuple[str, ...]]) -> None:
    codecs = SimpleNamespace(text=HashedTextEncoder(64))
    given = conditioning_of([row(*pair) for pair in pairs], codecs, VOICES)  # type: ignore[arg-type]
    expected = [
        [VOICES[Path(name)][0].item() if name else 0.0 for name in (*pair, "", "")[:2]] for pair in pairs
    ]
    assert given.speakers[:, :, 0].tolist() == expected
    assert (given.speaker_positions[:, 0] < given.speaker_positions[:, 1]).all()
    assert given.text_kept.all() and given.modalities_joined.all()

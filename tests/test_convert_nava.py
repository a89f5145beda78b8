"""A random checkpoint in the published NAVA layout, through import and our forward, gives what the
re-derivation of nava.md gives."""

from dataclasses import replace

import pytest
import torch
from convert_cases import TINY, imported, nava_tensors, sizes_for, write_checkpoint
from nava_rederived import forward
from torch import Tensor

from pretrain.model.args import ModelArgs
from pretrain.types import Conditioning, Stream

LEVELS = torch.tensor([[0.6], [0.3]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answers(
    tmp_path,
    args: ModelArgs = TINY,
    suffix: str = "leaf",
    given: str = "joint",
    joined: bool = True,
    **changes,
) -> list:
    """[(ours, the oracle's)] of each modality for one batch of two samples."""
    tensors = nava_tensors(args, suffix=suffix)
    model = imported(write_checkpoint(tmp_path / "source", tensors), tmp_path / "model", args)
    video, audio = draw(2, 48, 3, 4, 6, seed=1), draw(2, 128, 11, seed=2)
    levels = changes.get("video_levels", LEVELS)
    lengths, places = torch.tensor([6, 4]), changes.get("places", torch.tensor([[-1, -1], [-1, -1]]))
    text = draw(2, 6, args.text_width, seed=3) * (torch.arange(6) < lengths[:, None])[..., None]
    speakers = draw(2, 2, 192, seed=4)
    speakers[1, 1] = 0
    together, kept = torch.full((2,), joined), changes.get("kept", torch.ones(2, dtype=torch.bool))
    conditioning = Conditioning(text, torch.arange(6) < lengths[:, None], speakers, places, kept, together)
    streams = (
        Stream(video, torch.full((2,), 3), levels, 6.0, 6.0) if given != "audio" else None,
        Stream(audio, torch.full((2,), 11), LEVELS, 25.0, 6.0) if given != "video" else None,
    )
    with torch.no_grad():
        ours = model(*streams, conditioning)
    if (
        args.dropped_text_is_zeros
    ):  # said to the oracle as what it is: a kept text of zeros without timbre tokens
        text, places, kept = (
            text * kept[:, None, None],
            torch.where(kept[:, None], places, -1),
            torch.ones_like(kept),
        )
    theirs = forward(
        tensors,
        sizes_for(args),
        video=video if given != "audio" else None,
        audio=audio if given != "video" else None,
        video_levels=levels.expand(2, 3),
        audio_levels=LEVELS.expand(2, 11),
        text=text,
        text_lengths=lengths,
        speakers=speakers,
        speaker_positions=places,
        joined=together,
        text_kept=kept,
        attend_text_padding=args.attend_text_padding,
        audio_suffix=suffix,  # type: ignore[arg-type]
    )
    return [pair for pair in zip(ours, theirs, strict=True) if pair[0] is not None or pair[1] is not None]


FIRST_FRAME = torch.tensor([[0.0, 0.6, 0.6], [0.0, 0.3, 0.3]])
CASES: dict[str, dict] = {
    "joint": {},
    "audio only": {"given": "audio"},
    "video only": {"given": "video"},
    "modalities masked": {"joined": False},
    "clean first frame": {"video_levels": FIRST_FRAME},
    "timbre tokens": {"places": torch.tensor([[1, 4], [2, 3]])},
    "a timbre token among the padding": {"places": torch.tensor([[1, 5], [5, -1]])},
    "text dropped for one": {"kept": torch.tensor([True, False]), "places": torch.tensor([[1, 4], [2, -1]])},
    "dropped text skipped": {
        "kept": torch.tensor([True, False]),
        "args": replace(TINY, dropped_text_is_zeros=False),
    },
    "suffix on the module": {"suffix": "module"},
    "padding not attended to": {
        "args": replace(TINY, attend_text_padding=False, dropped_text_is_zeros=False),
        "places": torch.tensor([[1, 4], [2, -1]]),
    },
    "norms and feed-forward per modality": {"args": replace(TINY, split_ffn_and_norms=True)},
    "heads of 20 dims": {"args": replace(TINY, width=40)},
    "alignment blocks alone": {"args": replace(TINY, num_alignment_blocks=2, num_fusion_blocks=0)},
    "everything": {
        "video_levels": FIRST_FRAME,
        "places": torch.tensor([[1, 4], [2, 3]]),
        "kept": torch.tensor([False, True]),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_rederivation(case: str, tmp_path) -> None:
    pairs = answers(tmp_path, **CASES[case])
    assert len(pairs) == (1 if "only" in case else 2)
    for ours, theirs in pairs:
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    ["self_attn.q", "modulation_audio.modulation", "patch_embedding_audio.2.w1", "head_audio.modulation"],
)
def test_a_tensor_that_lands_elsewhere_would_be_seen(wrong: str, tmp_path, monkeypatch) -> None:
    def swapped(args, seed=1, suffix="leaf"):
        tensors = nava_tensors(args, seed, suffix)
        key = next(key for key in tensors if wrong in key)
        return {**tensors, key: tensors[key].flip(-1)}

    right = answers(tmp_path / "right")
    monkeypatch.setitem(
        globals(), "write_checkpoint", lambda folder, tensors: write_checkpoint_of(folder, swapped(TINY))
    )
    off = answers(tmp_path / "wrong")
    assert any((ours - theirs).abs().max() > 1e-2 for (ours, _), (_, theirs) in zip(off, right, strict=True))


write_checkpoint_of = write_checkpoint

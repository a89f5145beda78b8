"""Named sizes; the paradigms `dual_tower` and `unified` match `mini` in width and parameters.

A name with `_published` computes what the released weights were trained for: the padding of the text is
attended to.
"""

from __future__ import annotations

from dataclasses import replace

from pretrain.config import nearest
from pretrain.model.args import ModelArgs, Paradigm
from pretrain.model.dual_tower import DualTowerTransformer
from pretrain.model.shell import AVTransformer
from pretrain.model.transformer import NavaTransformer
from pretrain.model.unified import UnifiedTransformer

_MINI = ModelArgs(
    width=192,
    num_heads=3,
    ffn_width=768,
    num_alignment_blocks=1,
    num_fusion_blocks=3,
    text_width=256,
    audio_embed_hidden=256,
    audio_embed_kernel=3,
    gelu="none",
    timbre_keeps_text=True,
    open_deviation_video=0.1,
    open_deviation_audio=0.3,
)
_DEBUG = ModelArgs(
    width=32,
    num_heads=2,
    ffn_width=64,
    num_alignment_blocks=1,
    num_fusion_blocks=1,
    text_width=256,
    time_frequencies=32,
    audio_embed_hidden=32,
    audio_embed_kernel=3,
    timbre_keeps_text=True,
)

FLAVORS: dict[str, ModelArgs] = {
    "nava_6b": ModelArgs(),
    "nava_7b_split": ModelArgs(split_ffn_and_norms=True),
    # one block of each kind at full width, for measuring
    "nava_6b_two_blocks": ModelArgs(num_alignment_blocks=1, num_fusion_blocks=1),
    "mini": _MINI,
    "dual_tower": replace(_MINI, paradigm="dual_tower", num_alignment_blocks=2, num_fusion_blocks=0),
    "unified": replace(_MINI, paradigm="unified", num_alignment_blocks=0, num_fusion_blocks=6),
    "debug": _DEBUG,
    "debug_dual_tower": replace(_DEBUG, paradigm="dual_tower", num_alignment_blocks=2, num_fusion_blocks=0),
    "debug_unified": replace(_DEBUG, paradigm="unified", num_alignment_blocks=0, num_fusion_blocks=2),
}
# of `nava study claims`: six blocks of which 0 to 6 align, the FFN's width making parameters equal within 1 %
_BLOCKS = replace(_MINI, width=128, num_heads=2)
_FFN_WIDTHS = {0: 680, 1: 600, 2: 512, 3: 424, 6: 168}
FLAVORS |= {
    f"blocks_{aligning}of6": replace(
        _BLOCKS, num_alignment_blocks=aligning, num_fusion_blocks=6 - aligning, ffn_width=width
    )
    for aligning, width in _FFN_WIDTHS.items()
}
FLAVORS |= {
    "mini_plain_rope": replace(_MINI, rate_aware_rope=False),
    "mini_timbre_replaces": replace(_MINI, timbre_keeps_text=False),
    # as many parameters as the dual tower; a token meets those of three blocks in place of mini's four
    "mini_split": replace(_MINI, num_alignment_blocks=2, num_fusion_blocks=1, split_ffn_and_norms=True),
}
_PUBLISHED = ("nava_6b", "nava_7b_split", "debug")
FLAVORS |= {
    f"{name}_published": replace(
        FLAVORS[name], attend_text_padding=True, dropped_text_is_zeros=True, timbre_keeps_text=False
    )
    for name in _PUBLISHED
}


def flavor(name: str) -> ModelArgs:
    """Sizes of a named flavor; raises ValueError that names the nearest one."""
    if name not in FLAVORS:
        raise ValueError(f"unknown model flavor {name!r}; {nearest(name, FLAVORS)}")
    return FLAVORS[name]


PARADIGMS: dict[Paradigm, type[AVTransformer]] = {
    "nava": NavaTransformer,
    "dual_tower": DualTowerTransformer,
    "unified": UnifiedTransformer,
}


def build_model(args: ModelArgs) -> AVTransformer:
    """The transformer of `args.paradigm`, weights not initialised."""
    return PARADIGMS[args.paradigm](args)

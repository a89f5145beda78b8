"""The three ways to organise video, audio and context (nava.md, section 1), by name."""

from __future__ import annotations

from pretrain.model.args import ModelArgs, Paradigm
from pretrain.model.dual_tower import DualTowerTransformer
from pretrain.model.shell import AVTransformer
from pretrain.model.transformer import NavaTransformer
from pretrain.model.unified import UnifiedTransformer

PARADIGMS: dict[Paradigm, type[AVTransformer]] = {
    "nava": NavaTransformer,
    "dual_tower": DualTowerTransformer,
    "unified": UnifiedTransformer,
}


def build_model(args: ModelArgs) -> AVTransformer:
    """The transformer of `args.paradigm`, weights not initialised."""
    return PARADIGMS[args.paradigm](args)

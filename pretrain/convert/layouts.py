"""The published layouts as data: the source keys of each of our keys (nava.md, section 5).

`nava` is NAVA.safetensors, `wan` the original Wan2.2-TI2V-5B, `wan_diffusers` the same model as diffusers'
WanTransformer3DModel. Shapes of a key are the same on both sides but for our modulation tables, whose rows
are theirs, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.config import nearest
from pretrain.model.args import ModelArgs

WeightLayout = Literal["nava", "wan", "wan_diffusers"]
# self_attn.q_audio.weight (the release's) or self_attn_audio.q.weight
AudioSuffix = Literal["leaf", "module"]
AudioFrom = Literal["fresh", "copy"]

LAYOUTS: dict[WeightLayout, str] = {
    "nava": "NAVA.safetensors (keys under backbone.)",
    "wan": "Wan2.2-TI2V-5B as published",
    "wan_diffusers": "Wan2.2-TI2V-5B as diffusers' WanTransformer3DModel",
}
_WAN = {"open_deviation_video": None, "gelu": "tanh", "attend_text_padding": True, "rope_theta": 10000.0}
_NAVA = {
    "attend_text_padding": True,
    "dropped_text_is_zeros": True,
    "timbre_keeps_text": False,
    "rate_aware_rope": True,
    "open_deviation_audio": None,
}
# fields of ModelArgs that are not sizes, as the code of a layout has them; no key of a checkpoint says them
COMPUTED: dict[WeightLayout, dict[str, Any]] = {
    "nava": {**_NAVA, **_WAN, "eps": 1e-6},
    "wan": {**_WAN, "eps": 1e-6},
    "wan_diffusers": _WAN,  # config.json says eps
}
IGNORED = {r"(^|\.)(freqs|freqs_cos|freqs_sin)$": "rotary angles, computed from the sizes"}

_SHARED = (  # ours, theirs in nava and wan
    ("video_embedder.", "patch_embedding."),
    ("text_embedder.", "text_embedding."),
    ("time.embedding.", "time_embedding."),
    ("time.projection.", "time_projection.1."),
    ("head.linear.", "head.head."),
)
_NAVA_ONLY = (
    ("audio_embedder.conv.", "patch_embedding_audio.0."),
    ("audio_embedder.mlp.", "patch_embedding_audio.2."),
    ("timbre_token.", "speaker_embedding."),
    ("head_audio.linear.", "head_audio.head."),
)
_DIFFUSERS = (  # wan, diffusers
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.(self|cross)_attn\.([qkv])\.", r".\1_attn.to_\2."),
    (r"\.(self|cross)_attn\.o\.", r".\1_attn.to_out.0."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
)


@dataclass(frozen=True)
class Rule:
    """One of our keys and what it is made of; no sources = the layout has nothing for it."""

    ours: str
    theirs: tuple[str, ...]  # one: the same tensor; several: its rows along the first axis, in order
    copied: bool = False  # the sources belong to another key and were copied from there: they do not go back


def rules(
    layout: WeightLayout,
    args: ModelArgs,
    keys: Iterable[str],
    suffix: AudioSuffix = "leaf",
    audio: AudioFrom = "fresh",
) -> list[Rule]:
    """A rule for each of our keys. Raises ValueError where the model's paradigm has no counterpart there."""
    if args.paradigm != "nava":
        raise ValueError(f"paradigm {args.paradigm} has no published layout; only nava has one")
    if layout == "nava":
        return [Rule(key, tuple(f"backbone.{name}" for name in _nava(key, args, suffix))) for key in keys]
    found = [_wan(key, args, audio) for key in keys]
    if layout == "wan":
        return found
    return [Rule(rule.ours, tuple(map(_in_diffusers, rule.theirs)), rule.copied) for rule in found]


def detect(keys: Collection[str], where: str) -> tuple[WeightLayout, AudioSuffix]:
    """The layout that a checkpoint has by its keys. Raises ValueError where it has none of them."""
    marks: dict[WeightLayout, str] = {
        "nava": "backbone.",
        "wan": "blocks.0.self_attn.q.",
        "wan_diffusers": "blocks.0.attn1.to_q.",
    }
    for layout, mark in marks.items():
        if any(key.startswith(mark) for key in keys):
            return layout, "module" if any("_attn_audio." in key for key in keys) else "leaf"
    held = f"its keys begin with {sorted(keys)[0]!r}" if keys else "it holds no tensor"
    raise ValueError(
        f"{where}: none of the known layouts ({', '.join(LAYOUTS)}); {held}; give a whole transformer "
        "checkpoint"
    )


def ignored_reason(key: str) -> str:
    """Why a key of a checkpoint is not needed; "" where it is."""
    return next((reason for pattern, reason in IGNORED.items() if re.search(pattern, key)), "")


def layout_named(name: str) -> WeightLayout:
    """Raises ValueError that names the nearest layout; wan2.2 is the original Wan."""
    names: dict[str, WeightLayout] = {"wan2.2": "wan", **{layout: layout for layout in LAYOUTS}}
    if name not in names:
        raise ValueError(f"unknown layout {name!r}; {nearest(name, names)}")
    return names[name]


def _renamed(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    return next((theirs + key.removeprefix(ours) for ours, theirs in table if key.startswith(ours)), None)


def _nava(key: str, args: ModelArgs, suffix: AudioSuffix) -> tuple[str, ...]:
    tables = {
        "alignment_video": [
            f"double_blocks.{i}.modulation.modulation" for i in range(args.num_alignment_blocks)
        ],
        "alignment_audio": [
            f"double_blocks.{i}.modulation_audio.modulation" for i in range(args.num_alignment_blocks)
        ],
        "fusion": [f"single_blocks.{i}.modulation.modulation" for i in range(args.num_fusion_blocks)],
        "head_video": ["head.modulation"],
        "head_audio": ["head_audio.modulation"],
    }
    if key.startswith("time.tables."):
        return tuple(tables[key.removeprefix("time.tables.")])
    if renamed := _renamed(key, (*_SHARED, *_NAVA_ONLY)):
        return (renamed,)
    return (re.sub(r"_attn_audio\.(\w+)\.", r"_attn.\1_audio.", key) if suffix == "leaf" else key,)


def _wan(key: str, args: ModelArgs, audio: AudioFrom) -> Rule:
    """Block i of Wan is alignment block i, then fusion block i - num_alignment_blocks."""
    alignment = [f"blocks.{i}.modulation" for i in range(args.num_alignment_blocks)]
    fusion = [f"blocks.{args.num_alignment_blocks + i}.modulation" for i in range(args.num_fusion_blocks)]
    tables = {
        "time.tables.alignment_video": alignment,
        "time.tables.fusion": fusion,
        "time.tables.head_video": ["head.modulation"],
    }
    if key in tables:
        return Rule(key, tuple(tables[key]))
    if renamed := _renamed(key, _SHARED):
        return Rule(key, (renamed,))
    of_audio = key == "time.tables.alignment_audio" or re.match(r"double_blocks\.\d+\.\w+_audio\.", key)
    if of_audio and audio == "copy":
        return Rule(
            key,
            _wan(key.replace("_audio", "_video" if key.startswith("time.") else ""), args, audio).theirs,
            copied=True,
        )
    if of_audio or not (block := re.match(r"(double|single)_blocks\.(\d+)\.(.+)", key)):
        return Rule(key, ())
    first = args.num_alignment_blocks if block.group(1) == "single" else 0
    return Rule(key, (f"blocks.{first + int(block.group(2))}.{block.group(3)}",))


def _in_diffusers(key: str) -> str:
    for pattern, replacement in _DIFFUSERS:
        key = re.sub(pattern, replacement, key)
    return key

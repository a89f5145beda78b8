"""What a reward looks at and what it needs of a prompt, from its catalog entry or its plug-in's class.

A plug-in's class may say `picture`, `sound`, `lower_is_better` and `reads_prompt`; without them it sees both
modalities, is better when higher and reads the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from rewards.catalog import CATALOG, is_plugin, plugin_class
from rewards.options import fill
from rewards.recipes.preference import PreferenceOptions, needed_rewards
from rewards.types import Box

Modality = Literal["video", "audio", "both"]


class Conditions(Protocol):
    """What a clip was asked to be, as rewards see it."""

    @property
    def spans(self) -> Sequence[str]: ...
    @property
    def references(self) -> Sequence[Any]: ...
    @property
    def voices(self) -> Sequence[str]: ...
    @property
    def mouth_boxes(self) -> Sequence[Box]: ...
    @property
    def first_frame(self) -> Any: ...
    @property
    def reference_sound(self) -> Any: ...


def modality(name: str) -> Modality:
    """The modality that a reward can tell something about."""
    source = plugin_class(name) if is_plugin(name) else CATALOG[name]
    picture, sound = getattr(source, "picture", True), getattr(source, "sound", True)
    return "both" if picture and sound else "video" if picture else "audio"


def lower_is_better(name: str) -> bool:
    return bool(getattr(plugin_class(name) if is_plugin(name) else CATALOG[name], "lower_is_better", False))


def reads_prompt(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """False for a reward that sees the clip alone; `preference` reads what one of its features reads.

    Raises as rewards.recipes.preference.needed_rewards for a preference model that cannot be read.
    """
    if name == "preference":
        features = needed_rewards(fill(PreferenceOptions, options, name), CATALOG)
        return any(reads_prompt(feature) for feature in features)
    source = plugin_class(name) if is_plugin(name) else CATALOG[name]
    return bool(getattr(source, "reads_prompt", True))


def missing(name: str, asked: Conditions) -> str:
    """What a prompt lacks for this reward to score its clips; "" if nothing. Plug-ins need nothing."""
    if is_plugin(name):
        return ""
    entry = CATALOG[name]
    if entry.about in ("speech", "voice") and not asked.spans:
        return "<S>...<E> around spoken words in the prompt"
    if entry.about == "voice" and not any(reference is not None for reference in asked.references):
        return "a reference voice (spk_wavs)"
    if entry.about == "image" and asked.first_frame is None:
        return "a first frame (image_path)"
    if entry.about == "reference" and asked.reference_sound is None:
        return "a real recording to compare with, which prompts do not have"
    lacking = [part for part in entry.meta if not getattr(asked, part)]
    return f"meta.{lacking[0]}" if lacking else ""

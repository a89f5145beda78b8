"""Rewards by name: what `nava score` and a rubric may ask for, each with its typed options, imported and
built when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rewards.base import Reward
from rewards.options import fill, nearest
from rewards.recipes import picture, preference, remote, sound, speech, sync
from rewards.recipes.base import NoOptions, Shared, WeightsOptions


@dataclass(frozen=True)
class Entry:
    """`make(options, shared)` builds the reward; `options` is the dataclass of what may be set."""

    make: Callable[[Any, Shared], Reward]
    options: type = NoOptions
    lower_is_better: bool = False  # a rubric must give it a negative weight
    judge: bool = False  # measures what was trained on others; no rubric may weigh it
    offline: bool = True  # runs with what a checkout and its pipeline have
    picture: bool = False  # looks at frames; the others only listen
    about: Literal["any", "speech", "voice", "reference", "text", "image"] = (
        "any"  # a clip is eligible where this was given
    )


CATALOG: dict[str, Entry] = {
    "sync_mini": Entry(sync.sync_mini, sync.MiniOptions, picture=True, about="speech"),
    "sync_judge": Entry(sync.sync_judge, sync.JudgeOptions, judge=True, picture=True, about="speech"),
    "syncnet": Entry(sync.syncnet, sync.PublishedOptions, picture=True, about="speech", offline=False),
    "lip_loudness_correlation": Entry(sync.lip_loudness, picture=True, about="speech"),
    "wer_pocketsphinx": Entry(
        speech.wer_pocketsphinx, speech.PocketSphinxOptions, lower_is_better=True, about="speech"
    ),
    "intelligibility_pocketsphinx": Entry(speech.intelligibility, speech.VocabularyOptions, about="speech"),
    "wer_pocketsphinx_judge": Entry(
        speech.wer_pocketsphinx_judge,
        speech.PocketSphinxOptions,
        judge=True,
        lower_is_better=True,
        about="speech",
    ),
    "intelligibility_pocketsphinx_judge": Entry(
        speech.intelligibility_judge, speech.VocabularyOptions, judge=True, about="speech"
    ),
    "wer_whisper": Entry(
        speech.wer_whisper, speech.WhisperOptions, lower_is_better=True, about="speech", offline=False
    ),
    "wer_endpoint": Entry(
        speech.wer_endpoint, speech.EndpointOptions, lower_is_better=True, about="speech", offline=False
    ),
    "sim_resemblyzer": Entry(sound.sim_resemblyzer, about="voice"),
    "sim_wavlm_ecapa": Entry(sound.sim_wavlm_ecapa, sound.DeviceOptions, about="voice", offline=False),
    "sim_redimnet": Entry(sound.sim_redimnet, sound.DeviceOptions, about="voice", offline=False),
    "voice_accuracy_resemblyzer": Entry(sound.voice_accuracy, sound.BankOptions, about="speech"),
    "snr_estimate_db": Entry(sound.noise_estimate),
    "audiobox_pq": Entry(sound.audiobox, WeightsOptions, offline=False),
    "fd_verse_bench": Entry(
        sound.fd_verse_bench, WeightsOptions, lower_is_better=True, about="reference", offline=False
    ),
    "clap_text_cosine": Entry(sound.clap_text, WeightsOptions, about="text", offline=False),
    "picture_noise_judge": Entry(picture.noise_judge, judge=True, lower_is_better=True, picture=True),
    "identity_colour_edge": Entry(picture.identity, picture=True, about="image"),
    "preference": Entry(
        preference.preference, preference.PreferenceOptions, picture=True, offline=False
    ),  # the model's file is the user's
    "remote": Entry(remote.remote, remote.RemoteOptions, picture=True, offline=False),
    "remote_judge": Entry(remote.remote_judge, remote.RemoteOptions, judge=True, picture=True, offline=False),
}


def is_plugin(name: str) -> bool:
    """`package.module:Class`: any class with `name` and `score`, built with the options as keyword
    arguments."""
    return ":" in name


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError naming the nearest reward for an unknown one."""
    for name in names:
        if not is_plugin(name) and name not in CATALOG:
            raise ValueError(
                f"unknown reward {name!r}; {nearest(name, CATALOG)}, or a plug-in package.module:Class"
            )


def checked_options(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options dataclass (or mapping, for a plug-in) of each reward. Raises ValueError for unknown rewards,
    keys and wrong types."""
    check_names(names)
    for name in options:
        if name not in names:
            raise ValueError(f"options for {name!r}, which is not asked for; {nearest(name, names)}")
    return {name: _filled(name, options.get(name)) for name in names}


@contextmanager
def open_rewards(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Reward]]:
    """The rewards in this order, each built once; recognisers and encoders that several use are shared, and
    closed at the end.

    Raises ValueError and FileNotFoundError in one line for unknown names, wrong options and missing or wrong
    weights.
    """
    with ExitStack() as stack:
        yield build_rewards(names, options, Shared(stack))


def build_rewards(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]], shared: Shared
) -> list[Reward]:
    """As `open_rewards`, with parts that `shared` has already or will close."""
    filled = checked_options(names, options)
    rewards = [
        _plugin(name, filled[name]) if is_plugin(name) else CATALOG[name].make(filled[name], shared)
        for name in names
    ]
    names_given = [reward.name for reward in rewards]
    if doubled := {name for name in names_given if names_given.count(name) > 1}:
        raise ValueError(f"two rewards are called {sorted(doubled)[0]!r}; ask for one of them")
    return rewards


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ValueError for a rubric's weight that rewards what is worse, or a judge. Plug-ins are not
    judged, parts only as judges."""
    for name, weight in weights.items():
        entry = CATALOG.get(name) or CATALOG.get(name.partition(".")[0])
        if entry and entry.judge and weight:
            raise ValueError(
                f"items.{name}.weight: a judge must stay out of what is rewarded; give it weight 0 or leave "
                "it out"
            )
        if name in CATALOG and CATALOG[name].lower_is_better and weight > 0:
            raise ValueError(f"items.{name}.weight: lower is better, so give it a negative weight")


def _filled(name: str, values: Mapping[str, Any] | None) -> Any:
    return dict(values or {}) if is_plugin(name) else fill(CATALOG[name].options, values, name)


def _plugin(name: str, options: Mapping[str, Any]) -> Reward:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{name}: cannot be imported ({error}); give package.module:Class with the package on PYTHONPATH"
        ) from None
    if not hasattr(module, class_name):
        raise ValueError(
            f"{name}: {module_name} has no {class_name!r}; "
            f"{nearest(class_name, [n for n in vars(module) if n[0] != '_'])}"
        )
    try:
        reward = getattr(module, class_name)(**options)
    except TypeError as error:
        raise ValueError(f"{name}: cannot be built ({error}); set its arguments as options") from None
    if not isinstance(getattr(reward, "name", None), str) or not callable(getattr(reward, "score", None)):
        raise ValueError(f"{name}: has no `name` and `score(clips)`; see rewards.base.Reward")
    return reward

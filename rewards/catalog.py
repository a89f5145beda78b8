"""The catalog of rewards by name: typed options, metrics and a builder for each, imported lazily."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rewards import plugins
from rewards.base import Reward
from rewards.metric import Metric
from rewards.options import fill, nearest
from rewards.recipes import picture, preference, remote, sound, speech, sync
from rewards.recipes.base import Entry, NoOptions, ParkedOptions, PartMetric, Shared


def _preference(options: preference.PreferenceOptions, shared: Shared) -> Reward:
    return preference.preference(options, CATALOG, lambda names, inner: build_rewards(names, inner, shared))


WORD_ERRORS: dict[str, Any] = {"lower_is_better": True, "numerator": "errors", "denominator": "words"}
# In the order of the reports.
CATALOG: dict[str, Entry] = {
    "wer_pocketsphinx": Entry(
        speech.wer_pocketsphinx,
        speech.PocketSphinxOptions,
        "Word error rate (PocketSphinx)",
        role="reward",
        about="speech",
        gap_closed=True,
        **WORD_ERRORS,
    ),
    "wer_pocketsphinx_judge": Entry(
        speech.wer_pocketsphinx_judge,
        speech.PocketSphinxOptions,
        "Word error rate (PocketSphinx, the judge's set-up)",
        role="judge",
        about="speech",
        gap_closed=True,
        **WORD_ERRORS,
    ),
    "intelligibility_pocketsphinx": Entry(
        speech.intelligibility,
        speech.VocabularyOptions,
        "Intelligibility, 0 to 1 (PocketSphinx)",
        role="reward",
        about="speech",
        gap_closed=True,
    ),
    "intelligibility_pocketsphinx_judge": Entry(
        speech.intelligibility_judge,
        speech.VocabularyOptions,
        "Intelligibility, 0 to 1 (PocketSphinx, the judge's set-up)",
        role="judge",
        about="speech",
    ),
    "voice_accuracy_resemblyzer": Entry(
        sound.voice_accuracy,
        sound.BankOptions,
        "Nearest voice is the right one (Resemblyzer)",
        about="speech",
        meta=("voices",),
    ),
    "sim_resemblyzer": Entry(
        sound.sim_resemblyzer,
        NoOptions,
        "Similarity to the reference voice (Resemblyzer)",
        role="reward",
        about="voice",
    ),
    "sync_mini": Entry(
        sync.sync_mini,
        sync.MiniOptions,
        "Sync reward at zero lag (reward network)",
        role="reward",
        about="speech",
        picture=True,
        reads_prompt=False,
        meta=("mouth_boxes",),
        gap_closed=True,
    ),
    "sync_judge": Entry(
        sync.sync_judge,
        sync.JudgeOptions,
        "Sync reward at zero lag (judge network)",
        role="judge",
        about="speech",
        picture=True,
        reads_prompt=False,
        meta=("mouth_boxes",),
        gap_closed=True,
        parts=(
            PartMetric("sync_c_mini", "Sync-C of the judge's reduced SyncNet"),
            PartMetric(
                "sync_d_mini",
                "Sync-D of the judge's reduced SyncNet (lower is better)",
                lower_is_better=True,
            ),
        ),
    ),
    "lip_loudness_correlation": Entry(
        sync.lip_loudness,
        NoOptions,
        "Lips follow loudness (correlation)",
        about="speech",
        picture=True,
        reads_prompt=False,
        meta=("mouth_boxes",),
        parts=(
            PartMetric(
                "lag_frames",
                "Lips after sound (frames)",
                name="lip_loudness_lag_frames",
                unit="frames",
                has_direction=False,
            ),
        ),
    ),
    "picture_noise_judge": Entry(
        picture.noise_judge,
        NoOptions,
        "Noise of the picture, estimated (lower is better)",
        role="judge",
        lower_is_better=True,
        reads_prompt=False,
        sound=False,
        picture=True,
    ),
    "snr_estimate_db": Entry(
        sound.noise_estimate, NoOptions, "Signal to noise, estimated (dB)", unit="dB", reads_prompt=False
    ),
    "identity_colour_edge": Entry(
        picture.identity,
        NoOptions,
        "Likeness to the first frame (colours and edges)",
        about="image",
        sound=False,
        picture=True,
    ),
    "syncnet": Entry(
        sync.syncnet,
        sync.PublishedOptions,
        "Sync reward at zero lag (published SyncNet)",
        about="speech",
        picture=True,
        reads_prompt=False,
        offline=False,
    ),
    "wer_whisper": Entry(
        speech.wer_whisper,
        speech.WhisperOptions,
        "Word error rate (Whisper)",
        about="speech",
        offline=False,
        **WORD_ERRORS,
    ),
    "wer_endpoint": Entry(
        speech.wer_endpoint,
        speech.EndpointOptions,
        "Word error rate (transcription server)",
        about="speech",
        offline=False,
        **WORD_ERRORS,
    ),
    "sim_wavlm_ecapa": Entry(
        sound.sim_wavlm_ecapa,
        ParkedOptions,
        "Similarity to the reference voice (WavLM, ECAPA-TDNN)",
        about="voice",
        offline=False,
    ),
    "sim_redimnet": Entry(
        sound.sim_redimnet,
        ParkedOptions,
        "Similarity to the reference voice (ReDimNet)",
        about="voice",
        offline=False,
    ),
    "audiobox_pq": Entry(
        sound.audiobox,
        ParkedOptions,
        "Production quality (Audiobox Aesthetics)",
        reads_prompt=False,
        offline=False,
    ),
    "fd_verse_bench": Entry(
        sound.fd_verse_bench,
        ParkedOptions,
        "Distance of the sound to the reference's (CLAP)",
        lower_is_better=True,
        about="reference",
        offline=False,
    ),
    "clap_text_cosine": Entry(
        sound.clap_text, ParkedOptions, "Sound follows the text (CLAP cosine)", about="text", offline=False
    ),
    "preference": Entry(
        _preference,
        preference.PreferenceOptions,
        "Preference learned from votes (logits)",
        picture=True,
        offline=False,  # the model's file is the user's
    ),
    "remote": Entry(remote.remote, remote.RemoteOptions, "Reward of a service", picture=True, offline=False),
    "remote_judge": Entry(
        remote.remote_judge,
        remote.RemoteOptions,
        "Judge of a service",
        role="judge",
        picture=True,
        offline=False,
    ),
}


def is_plugin(name: str) -> bool:
    """True for `package.module:Class`, a class with `name` and `score` that takes its options as keywords."""
    return ":" in name


def metrics_of(rewards: Iterable[str]) -> dict[str, Metric]:
    """Metrics of these rewards by name: each reward and its listed parts, in catalog order, plug-ins last.

    A plug-in's class gives its own: `name`, and where wanted `title`, `unit`, `lower_is_better`, `numerator`
    and `denominator`. Raises ValueError for unknown rewards and a plug-in class without a name.
    """
    rewards = list(dict.fromkeys(rewards))
    check_names(rewards)
    found = [metric for name, entry in CATALOG.items() if name in rewards for metric in entry.metrics(name)]
    found += [_plugin_metric(name) for name in rewards if is_plugin(name)]
    return {metric.name: metric for metric in found}


def ratio_parts() -> list[tuple[str, str]]:
    """(numerator, denominator) of the catalog's ratios of sums, each once, as parts of a score."""
    return list(
        dict.fromkeys((m.numerator, m.denominator) for m in metrics_of(CATALOG).values() if m.numerator)
    )


def metric(name: str) -> Metric:
    """A metric of the catalog, the one of a plug-in, or `reward.part` for a part that no report lists. Raises
    ValueError naming the nearest."""
    if is_plugin(name):
        return _plugin_metric(name)
    known = metrics_of(CATALOG)
    if name in known:
        return known[name]
    base, _, part = name.partition(".")
    if not part or base not in CATALOG:
        raise ValueError(f"unknown metric {name!r}; {nearest(name, known)}")
    listed = next((other for other in known.values() if (other.scorer, other.part) == (base, part)), None)
    entry = CATALOG[base]
    unlisted = Metric(name, name, base, part, lower_is_better=entry.lower_is_better, role=entry.role)
    return dataclasses.replace(listed, name=name) if listed else unlisted


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError naming the nearest reward for an unknown one."""
    for name in names:
        if not is_plugin(name) and name not in CATALOG:
            raise ValueError(
                f"unknown reward {name!r}; {nearest(name, CATALOG)}, or a plug-in package.module:Class"
            )


def checked_options(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options dataclass (or mapping, for a plug-in) of each reward.

    Raises ValueError for unknown rewards, unknown keys and wrong types.
    """
    check_names(names)
    for name in options:
        if name not in names:
            raise ValueError(f"options for {name!r}, which is not asked for; {nearest(name, names)}")
    return {name: _filled(name, options.get(name)) for name in names}


@contextmanager
def open_rewards(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Reward]]:
    """Build the rewards in this order; recognisers and encoders are shared and closed on exit.

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
    """Raises ValueError for a weight with the wrong sign, or on a judge.

    Plug-ins have no listed direction and are not checked for it; their parts are only checked for judges.
    """
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


def _plugin_metric(name: str) -> Metric:
    found = plugin_class(name)
    if not isinstance(own := getattr(found, "name", None), str):
        raise ValueError(f"{name}: the class has no `name`, which reports need; give it one")
    given = {
        field: getattr(found, field)
        for field in ("unit", "lower_is_better", "numerator", "denominator")
        if hasattr(found, field)
    }
    return Metric(own, getattr(found, "title", own), own, **given)


def plugin_class(name: str) -> Any:
    """Class of `package.module:Class`, which has a `score`. Raises ValueError where its module is not allowed
    (see `rewards.plugins`), cannot be imported, or has no such reward."""
    return plugins.load(name, plugins.REWARD, name)


def _plugin(name: str, options: Mapping[str, Any]) -> Reward:
    try:
        reward = plugin_class(name)(**options)
    except TypeError as error:
        raise ValueError(f"{name}: cannot be built ({error}); set its arguments as options") from None
    if not isinstance(getattr(reward, "name", None), str) or not callable(getattr(reward, "score", None)):
        raise ValueError(f"{name}: has no `name` and `score(clips)`; see rewards.base.Reward")
    return reward

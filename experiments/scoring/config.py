"""Settings of a scoring run from the command line and a rubric file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from experiments.scoring.clips import ClipFile
from experiments.scoring.options import preference_options
from experiments.scoring.score_files import MAX_UNREADABLE, ScoreSettings
from pretrain.config import one_line
from rewards.catalog import CATALOG, check_names, check_weights, is_plugin, plugin_class
from rewards.guardrails import GuardrailLimits
from rewards.options import fill, nearest, read_yaml
from rewards.recipes.speech import VocabularyOptions
from rewards.rubric import Rubric, RubricItem
from rewards.traits import lower_is_better
from rewards.types import split_part

RUBRIC_KEYS = ("items", "guardrails", "options", "allow_prompt_blind")


@dataclass(frozen=True, kw_only=True)
class RubricFile:
    """A YAML file with `items` and optional `guardrails`, `options` and `allow_prompt_blind`.

    `nava score` ignores an item's `route` and `allow_prompt_blind`, which are for alignment.
    """

    path: Path
    rubric: Rubric
    limits: GuardrailLimits
    options: Mapping[str, Mapping[str, Any]]  # of rewards, as in the file
    guardrails: Mapping[str, float]  # as in the file
    allow_prompt_blind: bool = False

    @property
    def rewards(self) -> tuple[str, ...]:
        """The rewards that the items are about, as asked for, each once."""
        return tuple(dict.fromkeys(split_part(item.reward, CATALOG)[0] for item in self.rubric.items))


def read_rubric(path: Path) -> RubricFile:
    """Raises FileNotFoundError or ValueError in one line: no YAML, unknown keys, a weight of the wrong
    sign."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give a rubric as YAML (items: {{reward: {{weight: 1.0}}}})"
        )
    try:
        content = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({one_line(error)})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a mapping with {', '.join(RUBRIC_KEYS)}, got {content!r}")
    for key in content:
        if key not in RUBRIC_KEYS:
            raise ValueError(f"{path}: {key}: unknown key; {nearest(str(key), RUBRIC_KEYS)}")
    try:
        rubric = Rubric.from_config(content.get("items"))
        limits = fill(GuardrailLimits, content.get("guardrails"), "guardrails")
        check_weights({item.reward: item.weight for item in rubric.items})
        for item in rubric.items:
            _check_direction(item)
        options = _options(content.get("options"))
        if not isinstance(allowed := content.get("allow_prompt_blind", False), bool):
            raise ValueError(f"allow_prompt_blind: expected true or false, got {allowed!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return RubricFile(
        path=path,
        rubric=rubric,
        limits=limits,
        options=options,
        guardrails=dict(content.get("guardrails") or {}),
        allow_prompt_blind=allowed,
    )


def _check_direction(item: RubricItem) -> None:
    """Raises ValueError for a reward of one's own that cannot be imported, or weighs by the wrong sign."""
    reward, part = split_part(item.reward, CATALOG)
    if is_plugin(reward) and not part and item.weight > 0 and lower_is_better(reward):
        raise ValueError(f"items.{item.reward}.weight: lower is better, so give it a negative weight")


def _options(given: Any) -> dict[str, Any]:
    """`options` of a rubric file. Raises ValueError where they are no mapping of mappings."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"options: expected a mapping of rewards to options, got {given!r}")
    for name, values in (given or {}).items():
        if values is not None and not isinstance(values, Mapping):
            raise ValueError(f"options.{name}: expected a mapping of options, got {values!r}")
    return {str(name): dict(values or {}) for name, values in (given or {}).items()}


def settings_from(
    rewards: Sequence[str],
    rubric_path: Path | None,
    settings: Sequence[str],
    files: Sequence[ClipFile],
    batch: int = 64,
    max_unreadable: float = MAX_UNREADABLE,
) -> ScoreSettings:
    """Rewards named on the command line, else those of the rubric, with their options merged.

    `REWARD.OPTION=VALUE` overrides the rubric file.
    """
    file = read_rubric(rubric_path) if rubric_path else None
    rubric, limits = (file.rubric, file.limits) if file else (None, GuardrailLimits())
    options: dict[str, Any] = dict(file.options) if file else {}
    wanted = [name for given in rewards for name in given.split(",") if name]
    if file is not None and not wanted:
        wanted = list(file.rewards)
    if not wanted:
        raise ValueError(
            f"no rewards: give --rewards NAME... or --rubric FILE; there are {', '.join(CATALOG)}, or "
            "package.module:Class"
        )
    check_names(wanted)
    if batch < 1:
        raise ValueError(f"--batch: expected at least 1, got {batch}")
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"--max-unreadable: expected a share from 0 to 1, got {max_unreadable:g}")
    for name, given in reward_settings(settings, wanted).items():
        options[name] = {**(options.get(name) or {}), **given}
    for name in wanted:
        if name == "preference":
            options[name] = preference_options(
                options.get(name), lambda inner, given: _inner(inner, given, files)
            )
        elif hears(name):
            options[name] = with_vocabulary(name, options.get(name), files)
    if rubric is not None:
        rubric = Rubric(tuple(map(_by_score_name, rubric.items)))
    return ScoreSettings(
        rewards=tuple(dict.fromkeys(wanted)),
        options=options,
        rubric=rubric,
        limits=limits,
        batch=batch,
        max_unreadable=max_unreadable,
    )


def _by_score_name(item: RubricItem) -> RubricItem:
    """A plug-in's scores have the name that its class gives, in place of package.module:Class."""
    reward, part = split_part(item.reward, CATALOG)
    if not is_plugin(reward) or not isinstance(own := getattr(plugin_class(reward), "name", None), str):
        return item  # one that is named when it is built is renamed once it is
    return replace(item, reward=f"{own}.{part}" if part else own)


def with_vocabulary(
    name: str, options: Mapping[str, Any] | None, files: Sequence[ClipFile]
) -> dict[str, Any]:
    """Set PocketSphinx's vocabulary to the corpus' word bank, if unset and the bank covers some prompt.

    A clip with other words is a row with that reason. The vocabulary is not limited to the clips' own words:
    for few clips that would reveal the answers. Raises ValueError where no clip's words are in the bank.
    """
    if options and options.get("vocabulary"):
        return dict(options)
    from pretrain.data.corpus.bank import vocabulary

    words = vocabulary()
    unknown = [first_unknown([file], words) for file in files if file.spans]
    found = unknown[0] if unknown and all(unknown) else None
    if found is not None:
        raise ValueError(
            f"{name}.vocabulary: {found[1]!r} is not among the {len(words)} words of the corpus; "
            f"set all words that can be heard, {name}.vocabulary=[...]"
        )
    return {**(options or {}), "vocabulary": list(words)}


def first_unknown(files: Sequence[ClipFile], words: Collection[str]) -> tuple[ClipFile, str] | None:
    """The first clip with a word to be spoken that is not among `words`, and that word."""
    from rewards.speech.scoring import normalize

    known = set(words)
    for file in files:
        if unknown := sorted({word for span in file.spans for word in normalize(span).split()} - known):
            return file, unknown[0]
    return None


def hears(name: str) -> bool:
    """True for a recogniser with a given vocabulary."""
    return name in CATALOG and issubclass(CATALOG[name].options, VocabularyOptions)


def _inner(name: str, options: Mapping[str, Any], files: Sequence[ClipFile]) -> Mapping[str, Any]:
    return with_vocabulary(f"preference.options.{name}", options, files) if hears(name) else options


def reward_settings(
    settings: Sequence[str], wanted: Sequence[str], flag: str = "--set"
) -> dict[str, dict[str, Any]]:
    """Options by reward from REWARD.OPTION=VALUE; the last duplicate wins.

    Raises ValueError naming `flag`.
    """
    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, option, value = _reward_setting(setting, wanted, flag)
        options.setdefault(name, {})[option] = value
    return options


def _reward_setting(text: str, wanted: Sequence[str], flag: str) -> tuple[str, str, Any]:
    """(reward, option, value) of REWARD.OPTION=VALUE, with a YAML value. Raises ValueError naming `flag`."""
    key, equals, value = text.partition("=")
    name, dot, option = key.rpartition(".")
    if not equals or not dot:
        raise ValueError(f"{flag} {text}: expected REWARD.OPTION=VALUE")
    if name not in wanted:
        raise ValueError(f"{flag} {text}: {name!r} is not asked for; {nearest(name, wanted)}")
    try:
        return name, option, read_yaml(value)
    except yaml.YAMLError:
        raise ValueError(f"{flag} {text}: the value is not YAML; quote it") from None

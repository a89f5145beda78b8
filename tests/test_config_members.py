"""Members of lists and mappings in settings are checked as single values are, wherever they stand."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.recipes.load import load_recipe
from experiments.report.gates import Gate
from pretrain.config import INLINE, override

RECIPE = load_recipe("mini")
NOT_FINITE = (math.nan, math.inf, -math.inf)
# a value of the annotated type -> values that are of none of its kinds
WRONG = {
    str: (*NOT_FINITE, 3, 2.5, True, None, [], {"a": 1}, ["a"]),
    float: (*NOT_FINITE, "nan", "-.inf", "many", True, None, [1.0], {"a": 1}),
    int: (*NOT_FINITE, 2.5, "3", True, None, [1], {"a": 1}),
}


def fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(names from the root, annotation, default) of every field that is no section."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        here = path if INLINE in item.metadata else (*path, item.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, here)
        elif isinstance(value, Mapping) and value and all(map(dataclasses.is_dataclass, value.values())):
            for name, member in value.items():
                yield from fields(member, (*here, name))
        else:
            yield here, hints[item.name], value


def nested(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


FIELDS = list(fields(RECIPE))
LISTS = [
    (path, typing.get_args(hint)[0], value)
    for path, hint, value in FIELDS
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[-1] is ...
]
NAMED = [
    (path, typing.get_args(hint)[1], value)
    for path, hint, value in FIELDS
    if typing.get_origin(hint) is Mapping and typing.get_args(hint)[1] is float
]


def test_the_recipe_has_such_fields():
    assert len(LISTS) >= 10 and len(NAMED) >= 8


@given(st.data())
@settings(max_examples=150)
def test_a_wrong_member_of_a_list_is_refused_with_its_index(data):
    path, kind, value = data.draw(st.sampled_from(LISTS))
    wrong = WRONG.get(kind, (*NOT_FINITE, 3, "text", None, []))  # else a list of dataclasses
    members = list(value) if kind in WRONG else []
    index = data.draw(st.integers(0, len(members)))
    members.insert(index, data.draw(st.sampled_from(wrong)))
    with pytest.raises(ValueError) as caught:
        override(RECIPE, nested(path, members))
    assert str(caught.value).startswith(f"{'.'.join(path)}[{index}]: expected")
    assert "\n" not in str(caught.value)


@given(st.data())
@settings(max_examples=150)
def test_a_wrong_value_of_a_mapping_is_refused_with_its_name(data):
    path, kind, value = data.draw(st.sampled_from(NAMED))
    name = data.draw(st.sampled_from([*value, "another"]))
    with pytest.raises(ValueError) as caught:
        override(RECIPE, nested(path, {**value, name: data.draw(st.sampled_from(WRONG[kind]))}))
    assert str(caught.value).startswith(f"{'.'.join(path)}.{name}: expected")


@pytest.mark.parametrize("name", [None, True, 2.5, math.nan])
def test_a_name_is_text(name):
    with pytest.raises(ValueError, match=r"sets.*expected a name"):
        override(RECIPE, {"pretrain": {"stages": {"stage1": {"sets": {name: 1.0}}}}})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("score.rewards=[wer_pocketsphinx, syncmini]", r"score.rewards\[1\]: unknown reward 'syncmini'"),
        ("score.align_judges=[sync_juge]", r"score.align_judges\[0\]: .*did you mean 'sync_judge'"),
        ("align.rubric.watched=[sync_judge, xyz]", r"align.rubric.watched\[1\]: unknown reward 'xyz'"),
        ("align.rubric.video={xyz: 1}", "align.rubric.video.xyz: unknown reward"),
        ("align.rubric.floors={xyz: {floor: 1}}", "xyz. has no weight; did you mean"),
        ("align.reward_options={xyz: {a: 1}}", "align.reward_options.xyz: unknown reward"),
        ("align.guardrails={min_moton: 1}", "align.guardrails.min_moton: .*did you mean 'min_motion'"),
        ("ray.pools.rewards.rewards=[xyz]", r"ray.pools.rewards.rewards\[0\]: unknown reward"),
        ("pretrain.stages.stage3.audio_sets={paired: -1}", "audio_sets: weights must be finite"),
        ("votes.panel.axes=[sync, xyz]", "axes: unknown 'xyz'; did you mean 'sync'"),
        ("align.sequence=[nft, nfd]", "sequence: unknown algorithm 'nfd'"),
        ("align.lora.targets=[ffn, fnf]", "targets: unknown group 'fnf'"),
    ],
)
def test_an_unknown_choice_in_a_list_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("mini", settings=[setting])


def test_plug_ins_are_named_without_being_loaded():
    assert load_recipe("mini", settings=["score.rewards=[nowhere:Reward]"]).score.rewards == (
        "nowhere:Reward",
    )


@given(
    st.integers(0, 2), st.sampled_from(["metric", "set", "statistic", "value", "at_most", "min_n", "colour"])
)
@settings(max_examples=40)
def test_a_wrong_field_of_a_dataclass_in_a_list_is_named_with_its_index(index, name):
    good = {"metric": "wer_pocketsphinx", "set": "pretrain_seen", "at_most": 1.0, "why": "words"}
    gates: list[dict[str, Any]] = [good, good, good]
    wrong = {"at_most": math.nan, "min_n": 2.5}.get(name, "xyz")
    gates[index] = {**good, name: wrong}
    with pytest.raises(ValueError, match=rf"evaluate.gates\[{index}\].*{name}"):
        override(RECIPE, {"evaluate": {"gates": gates}})
    assert override(RECIPE, {"evaluate": {"gates": [good]}}).evaluate.gates == (Gate(**good),)

"""YAML of rubrics, parameters and settings: words stay words, and no key counts twice."""

import pytest
import yaml

from experiments.recipes.load import load_recipe, parse_setting, read_params
from experiments.scoring.config import read_rubric
from rewards.options import read_yaml


def test_words_of_a_vocabulary_stay_words():
    assert read_yaml("[yes, No, on, OFF, y, n]") == ["yes", "No", "on", "OFF", "y", "n"]
    assert read_yaml("[true, False, 1, 1.5, null]") == [True, False, 1, 1.5, None]
    assert parse_setting("score.vocabulary=[yes, no]") == {"score": {"vocabulary": ["yes", "no"]}}
    assert load_recipe("mini", None, ["score.vocabulary=[yes, no]"]).score.vocabulary == ("yes", "no")


def test_what_is_no_word_is_refused_with_the_cure():
    for value in ("true", "5", "2001-01-01"):
        with pytest.raises(ValueError, match=r"vocabulary\[1\]: expected str, got .*put it in quotes"):
            load_recipe("mini", None, [f"score.vocabulary=[one, {value}]"])


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("On", True), ("no", False), ("false", False)])
def test_fields_that_are_true_or_false_take_all_spellings(text, value):
    assert load_recipe("mini", None, [f"generate.bf16={text}"]).generate.bf16 is value


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("align:\n  seed: 1\n  seed: 2\n")
    with pytest.raises(ValueError, match=r"params\.yaml:3: not YAML \(the key 'seed' is given twice"):
        read_params(path)
    path.write_text("items: {snr_estimate_db: {weight: 1.0}, snr_estimate_db: {weight: 2.0}}\n")
    with pytest.raises(ValueError, match="given twice"):
        read_rubric(path)
    with pytest.raises(yaml.YAMLError):
        read_yaml("{a: 1, a: 1}")
    assert read_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}")["b"] == {"x": 2, "y": 1}


def test_rubric_options_keep_words(tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfitems: {wer_pocketsphinx: {weight: -1.0}}\n"
        b"options: {wer_pocketsphinx: {vocabulary: [yes, no]}}\n"
    )
    assert read_rubric(path).options["wer_pocketsphinx"]["vocabulary"] == ["yes", "no"]

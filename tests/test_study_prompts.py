"""What the prompts of a study ask for, and how arms are compared over it."""

import json

from experiments.scoring.statistics import Draws, Table
from experiments.studies.said import said_by_prompts
from experiments.studies.tables import Comparison


def test_prompts_of_the_same_words_and_voices_are_known_by_them(tmp_path):
    rows = [("a", "one", ["slt"]), ("b", "one", ["slt"]), ("c", "one", ["rms"]), ("d", "two", ["slt"])]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"data_id": name, "prompt": f"{name} says <S>{word}<E>", "meta": {"voices": voices}})
            + "\n"
            for name, word, voices in rows
        )
    )
    said = said_by_prompts(prompts, ["d", "a", "b", "c", "gone"])
    assert said == [(("two",), ("slt",)), (("one",), ("slt",)), said[1], (("one",), ("rms",)), "gone"]


def test_repeated_prompts_make_no_difference_or_share_surer():
    values = (0.0, 1.0, 2.5, 4.0)
    few = [
        Table.of([[[value * slope + gain, 1.0] for value in values]])
        for slope, gain in ((1.0, 0.0), (1.5, 1.0), (1.0, 2.0))
    ]
    many = [Table(table.above.repeat(6, axis=1), table.below.repeat(6, axis=1)) for table in few]

    def found(comparison, tables):
        base, part, whole = ({"m": table} for table in tables)
        answers = (
            comparison.means(base),
            comparison.differences(part, base),
            comparison.shares(part, whole, base),
        )
        return [answer["m"] for answer in answers]

    once = found(Comparison(Draws.crossed, 500, {"m": True}), few)
    often = found(Comparison(Draws.crossed, 500, {"m": True}, said=[i // 6 for i in range(24)]), many)
    assert often == [{**answer, "n": 24} for answer in once]
    assert once[2]["low"] < once[2]["high"]

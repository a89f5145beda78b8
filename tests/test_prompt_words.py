"""Words that the mini was never trained on are warned of by line."""

import json

from experiments.cli import main
from experiments.prompt_words import word_warnings
from pretrain.data.corpus.vocabulary import described_words, spoken_words, unknown_words, vocabulary_warning
from pretrain.prompt import parse


def test_every_word_of_the_corpus_is_known():
    for text in (
        "On a teal background, a man with grey hair says <S>orange<E> in a soft Scottish voice.",
        "The sound of a bouncing ball: dull thuds.",
        "A yellow light flashes on a dark background with a high tone.",
        "<S>ocean<E>, says a woman with red hair and a green shirt. The camera zooms out.",
    ):
        assert vocabulary_warning(parse(text)) == ""
    assert {"zero", "ocean"} <= spoken_words() and "zero" not in described_words()


def test_unknown_words_are_named_once_and_by_where_they_stand():
    found = unknown_words(
        parse("An astronaut, a red astronaut: <S>Hello, seven<E> <S>hello<E> ball 一个男人")
    )
    assert found == (["hello"], ["astronaut", "一个男人"])
    assert unknown_words(parse("A summer: <S>woman<E>")) == (["woman"], ["summer"])


def test_the_check_warns_by_line_and_not_for_published_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "A man says: <S>seven<E>."}, {"prompt": "<S>"}, {"prompt": "A robot."}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["prompt", "check", "p.jsonl"])
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: p.jsonl:3 prompt: words that the mini was never trained on: to show 'robot'"
    ]
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_text('{"kind": "published"}')
    assert word_warnings(path, tmp_path / "codec") == []
    assert len(word_warnings(path, tmp_path)) == 1 and word_warnings(path, tmp_path, limit=1) == []

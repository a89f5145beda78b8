"""Lists with a byte order mark, line ends of Windows, blanks and missing columns."""

import pytest

from experiments.paper.layouts import read_seed_tts
from pretrain.data.mixing import read_mix
from pretrain.files import text_lines

BOM = b"\xef\xbb\xbf"
META = "u1|Hi.|p.wav|One.\r\n\r\n u2 |Hi.| p.wav |Two. \r\nu3|Hi.|p.wav|Three\u2028four.|t.wav\r\n"


def meta(tmp_path, content: bytes):
    path = tmp_path / "meta.lst"
    path.write_bytes(content)
    return read_seed_tts(path, tmp_path)


@pytest.mark.parametrize("start", [b"", BOM])
def test_no_case_of_a_meta_list_is_lost(tmp_path, start):
    (tmp_path / "u1.wav").touch()
    items = meta(tmp_path, start + META.encode())
    assert [(item.name, item.speech) for item in items] == [
        ("u1", "One."),
        ("u2", "Two."),
        ("u3", "Three\u2028four."),
    ]
    assert items[0].sound == tmp_path / "u1.wav" and items[1].voice == tmp_path / "p.wav"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"u1|Hi.|p.wav|One.\nu2|Hi.|p.wav\n", "meta.lst:2: 3 fields, but line 1 has 4"),
        (b"u1|Hi.|p.wav|One.\nu2\n", "meta.lst:2: 1 fields"),
        (b"u1|Hi.|p.wav|One.\nu2|Hi.|p.wav| \n", "meta.lst:2: infer_text is blank"),
        (b"u1|Hi.||One.\n", "meta.lst:1: prompt_wav is blank"),
        (b"|Hi.|p.wav|One.\n", "meta.lst:1: utt_id is blank"),
        (b"u1|Hi.|p.wav|One.\nu1 |Hi.|p.wav|Two.\n", "meta.lst:2: 'u1' is there twice, first on line 1"),
        ("u1|Hi.|p.wav|One.\n".encode("utf-16"), "meta.lst:1: the file is UTF-16; save it as UTF-8"),
        (b"u1|Hi.|p.wav|One.\nu2|\xe9|p.wav|Two.\n", "meta.lst:2: not UTF-8 at byte 3"),
        (BOM + b"\n", "the file is empty"),
    ],
)
def test_a_wrong_line_of_a_meta_list_is_named(tmp_path, content, says):
    with pytest.raises(ValueError) as caught:
        meta(tmp_path, content)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_mixing_files_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "mix.list").write_bytes(BOM + b"0\ta\ta.jsonl\r\n\r\n1\tb.jsonl\r\n")
    (tmp_path / "mix.weight").write_bytes(BOM + b"a\t1\ttext_to_av\r\nb \t2\ttext_to_av \r\n")
    assert [(entry.name, entry.weight) for entry in read_mix(tmp_path / "mix.list")] == [
        ("a", 1.0),
        ("b", 2.0),
    ]
    (tmp_path / "mix.list").write_bytes(b"0\ta\t\n")
    with pytest.raises(ValueError, match=r"mix\.list:1: expected idx"):
        read_mix(tmp_path / "mix.list")
    (tmp_path / "mix.list").write_bytes("0\ta\ta.jsonl\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"mix\.list:1: the file is UTF-16"):
        read_mix(tmp_path / "mix.list")


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "x").write_bytes(BOM + b"a\n\n \t\r\n b\t\r\n")
    assert text_lines(tmp_path / "x") == [(1, "a"), (4, " b\t")]

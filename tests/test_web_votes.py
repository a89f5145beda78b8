"""Pairs of clips as folders that `nava gsb serve` takes."""

import dataclasses
import shlex
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.commands.gsb import index_of
from experiments.scoring.clips import list_clips
from experiments.voting.clips import shown_length
from experiments.voting.sets import read_cases
from experiments.web.votes import VoteClip, VotePair, add_to_vote, vote_name
from pretrain.media.write import write_mp4, write_wav

SOUND = 0.1 * np.sin(np.arange(16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for number in range(4):
        frames = np.full((24, 32, 32, 3), 60 * number, np.uint8)
        write_mp4(folder / f"{number}.mp4", frames, 24.0, SOUND, 16_000, {})
        write_wav(folder / f"{number}.wav", SOUND, 16_000)
    return folder


def clip(media: Path, label: str, number: int, prompt: str = "Says <S>one<E>.") -> VoteClip:
    job = {"id": f"video_{label}_{number}", "seed": number, "prompt": prompt, "num_frames": 24, "fps": 24.0}
    job |= {"video_bytes": 9, "audio_bytes": 9, "adapters": {}, "error": None}
    return VoteClip(
        label=label, job=job, video=media / f"{number % 4}.mp4", audio=media / f"{number % 4}.wav"
    )


def pair(media: Path, number: int, labels: tuple[str, str] = ("small", "small+look"), **changes) -> VotePair:
    first, second = (clip(media, label, number) for label in labels)
    return VotePair(first=first, second=second, **changes)


def sets_of(command: str) -> list:
    """Cases, as the command would read them."""
    words = shlex.split(command)
    assert words[:3] == ["nava", "gsb", "serve"]
    return read_cases([index_of(text, "") for text in words[3 : words.index("--votes")]])


def test_the_command_reads_what_was_written(media, tmp_path):
    voice = media / "1.wav"
    pairs = [pair(media, 1, references=(None, voice)), pair(media, 2)]
    made = add_to_vote(tmp_path / "a vote", pairs)
    assert (made.cases, made.added) == (2, 2)
    cases = sets_of(made.command)
    assert [tuple(case.clips) for case in cases] == [("small", "small+look")] * 2
    assert [case.prompt for case in cases] == ["Says <S>one<E>."] * 2
    assert len(cases[0].references) == 1 and cases[0].references[0].read_bytes() == voice.read_bytes()
    for case in cases:
        shown_length(list(case.clips.values()))  # pictures and sound of one length
    scored = list_clips(made.folders[0])
    assert [one.spans for one in scored] == [("one",)] * 2
    assert scored[0].references[0] is None and scored[0].references[1].is_file()


@settings(max_examples=15)
@given(calls=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_same_pair_once_however_it_is_sent(calls, media, tmp_path_factory):
    folder = tmp_path_factory.mktemp("votes") / "v"
    sent: set[int] = set()
    for numbers in calls:
        made = add_to_vote(folder, [pair(media, number) for number in numbers])
        assert made.added == len(set(numbers) - sent)
        sent |= set(numbers)
        assert made.cases == len(sent)
    assert sorted(int(case.case_id.split("-")[0][4:]) for case in sets_of(made.command)) == sorted(sent)


def test_what_a_killed_call_left_is_no_case_and_comes_with_the_next(media, tmp_path, monkeypatch):
    import experiments.web.votes as votes

    made = add_to_vote(tmp_path / "v", [pair(media, 1)])
    real, calls = votes.dump, []

    def dies(path, rows):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(path, rows)

    monkeypatch.setattr(votes, "dump", dies)
    with pytest.raises(KeyboardInterrupt):
        add_to_vote(tmp_path / "v", [pair(media, 2)])
    with pytest.raises(ValueError, match="of one set only"):
        sets_of(made.command)
    monkeypatch.setattr(votes, "dump", real)
    assert add_to_vote(tmp_path / "v", [pair(media, 3)]).cases == 2
    assert len(sets_of(made.command)) == 2
    assert add_to_vote(tmp_path / "v", [pair(media, 2)]).cases == 3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda one: [], "no pair yet"),
        (
            lambda one: [one, dataclasses.replace(one, second=dataclasses.replace(one.second, label="x"))],
            "other models",
        ),
        (lambda one: [dataclasses.replace(one, second=one.first)], "other models"),
        (lambda one: [_changed(one, "video_bytes", 0)], "pictures and sound both"),
        (lambda one: [_changed(one, "prompt", "else")], "different prompts"),
        (
            lambda one: [dataclasses.replace(one, second=dataclasses.replace(one.second, label="../x"))],
            "slashes",
        ),
    ],
)
def test_what_cannot_be_voted_on_is_one_line_and_writes_nothing(change, found, media, tmp_path):
    with pytest.raises(ValueError, match=found) as wrong:
        add_to_vote(tmp_path / "v", change(pair(media, 1)))
    assert "\n" not in str(wrong.value) and not list(tmp_path.rglob("*.mp4"))


def _changed(one: VotePair, key: str, value) -> VotePair:
    return dataclasses.replace(
        one, second=dataclasses.replace(one.second, job={**one.second.job, key: value})
    )


def test_a_vote_of_other_models_needs_another_name(media, tmp_path):
    add_to_vote(tmp_path / "v", [pair(media, 1)])
    with pytest.raises(
        ValueError, match=r"vote 'v' is about small and small\+look, these clips are of a and b"
    ):
        add_to_vote(tmp_path / "v", [pair(media, 1, ("a", "b"))])


def test_two_windows_at_once_lose_nothing(media, tmp_path):
    """Each call is whole or refused in a line."""
    told: list[str] = []

    def send(number: int) -> None:
        while True:
            try:
                add_to_vote(tmp_path / "v", [pair(media, number)])
                return
            except ValueError as error:
                told.append(str(error))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another window adds to this vote" in line for line in told)
    assert len(sets_of(add_to_vote(tmp_path / "v", [pair(media, 0)]).command)) == 6


def test_names_of_votes():
    assert vote_name(" my vote ") == "my vote"
    for name in ("", "..", "a/b", ".hidden", "con"):
        with pytest.raises(ValueError, match="name of the vote"):
            vote_name(name)

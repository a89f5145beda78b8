"""A folder of clips: what it is made with, what is there whole, and what becomes of what was there."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.generation.clip_folder import PARTS, ClipFolder
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import clip_jobs
from pretrain.generation.request import asked_of, difference, digest_of_jobs, digests_of_files, same_as
from pretrain.owned import MARKER
from pretrain.prompt import read_prompts
from pretrain.storage import TRASH, place

REQUEST = {"model": "1111", "prompts": {"clips": 3, "sha256": "aa"}, "settings": {"sampler": {"steps": 2}}}
NAMES = ("a", "b", "c")


def row(name: str) -> dict:
    return {"data_id": name, "video": f"{name}.mp4", "audio": f"{name}.wav"}


def fill(folder: ClipFolder, *names: str) -> None:
    for name in names:
        for file in (f"{name}.mp4", f"{name}.wav"):
            (folder.place / file).write_bytes(f"{file} of {folder.request['model']}".encode())
        folder.add(row(name), [f"{name}.mp4", f"{name}.wav"])


def begun(out: Path, *names: str, **more: object) -> ClipFolder:
    folder = ClipFolder.of(out, {**REQUEST, **more}, NAMES)
    folder.begin(threads=2)
    fill(folder, *names)
    return folder


def test_what_is_there_whole_stays_and_the_rest_is_missing(tmp_path):
    out = tmp_path / "clips"
    begun(out, "a", "b")
    (out / "b.wav").write_bytes(b"cut")  # another size than was noted
    (out / "c.mp4").write_bytes(b"without a row")
    (out / ".c.wav.999999999.tmp").write_bytes(b"half")
    again = ClipFolder.of(out, REQUEST, NAMES)
    assert again.state == "unfinished" and list(again.done()) == ["a"] and again.threads == 2
    again.begin(threads=7)
    assert again.threads == 2  # those of the clips that are there
    fill(again, "c", "b")
    again.finish()
    assert {path.name for path in out.iterdir()} == {MARKER, "index.jsonl"} | {
        f"{name}.{kind}" for name in NAMES for kind in ("mp4", "wav")
    }
    found = [json.loads(line)["data_id"] for line in (out / "index.jsonl").read_text().splitlines()]
    assert found == list(NAMES)
    assert ClipFolder.of(out, REQUEST, NAMES).state == "finished"


def test_a_clip_that_somebody_deleted_is_made_again_and_their_files_stay(tmp_path):
    out = tmp_path / "clips"
    begun(out, *NAMES).finish()
    (out / "b.mp4").unlink()
    (out / "notes.txt").write_text("mine")
    folder = ClipFolder.of(out, REQUEST, NAMES)
    assert folder.state == "unfinished" and list(folder.done()) == ["a", "c"]
    folder.begin(1)
    fill(folder, "b")
    folder.finish()
    assert (out / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in json.loads((out / MARKER).read_text())["files"]
    with pytest.raises(ValueError, match=r"holds 'notes\.txt', which `nava generate` did not make"):
        ClipFolder.of(out, {**REQUEST, "model": "2222"}, NAMES)


def test_an_unfinished_folder_of_something_else_is_refused_with_the_difference(tmp_path):
    out = tmp_path / "clips"
    begun(out, "a")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"unfinished, and made with another model \(1111, asked for is 2222\)"
    ):
        ClipFolder.of(out, {**REQUEST, "model": "2222"}, NAMES)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    folder = ClipFolder.of(out, {**REQUEST, "model": "2222"}, NAMES, aside=True)
    assert (out / "a.mp4").exists()  # until the first clip is there
    folder.begin(1)
    (aside,) = (tmp_path / TRASH).iterdir()
    assert (aside / "a.mp4").read_text() == "a.mp4 of 1111" and not (out / "a.mp4").exists()


def test_a_finished_folder_of_something_else_goes_to_the_trash_when_work_begins(tmp_path, capsys):
    out = tmp_path / "clips"
    begun(out, *NAMES).finish()
    folder = ClipFolder.of(out, {**REQUEST, "settings": {"sampler": {"steps": 9}}}, NAMES)
    assert folder.state == "replaced" and (out / "a.mp4").exists()
    folder.begin(1)
    said = capsys.readouterr().out
    assert "generate.sampler.steps 2, asked for is 9" in said and "moved to" in said
    (aside,) = (tmp_path / TRASH).iterdir()
    assert (aside / "index.jsonl").exists()


def test_a_process_of_a_folder_that_another_command_took_adds_nothing(tmp_path):
    out = tmp_path / "clips"
    late = begun(out, "a")
    begun_anew = ClipFolder.of(out, {**REQUEST, "model": "2222"}, NAMES, aside=True)
    begun_anew.begin(1)
    with pytest.raises(OSError, match="another command has taken the folder"):
        late.add(row("b"), [])
    assert begun_anew.done() == {}


def test_folders_of_others_are_refused_and_links_are_followed(tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    (user / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="not empty and not marked as made by `nava generate`"):
        ClipFolder.of(user, REQUEST, NAMES)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    begun(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a.mp4").exists()


def test_where_no_clip_came_out_nothing_is_left(tmp_path):
    folder = begun(tmp_path / "clips")
    folder.abandon()
    assert not (tmp_path / "clips").exists()
    kept = begun(tmp_path / "kept", "a")
    kept.abandon()
    assert (tmp_path / "kept" / PARTS).exists()


def test_a_store_works_like_a_folder():
    out = place("memory://bucket/generation-folder/clips")
    folder = ClipFolder.of(out, REQUEST, NAMES)
    folder.begin(1)
    for name in ("a", "c"):
        for file in (f"{name}.mp4", f"{name}.wav"):
            (out / file).write_bytes(b"x")
        folder.add(row(name), [f"{name}.mp4", f"{name}.wav"])
    again = ClipFolder.of(out, REQUEST, NAMES)
    assert again.state == "unfinished" and list(again.done()) == ["a", "c"]
    with pytest.raises(ValueError, match="another model"):
        ClipFolder.of(out, {**REQUEST, "model": "2"}, NAMES)
    again.begin(1)
    for file in ("b.mp4", "b.wav"):
        (out / file).write_bytes(b"x")
    again.add(row("b"), ["b.mp4", "b.wav"])
    again.finish()
    assert [json.loads(line)["data_id"] for line in (out / "index.jsonl").read_text().splitlines()] == list(
        NAMES
    )
    assert ClipFolder.of(out, REQUEST, NAMES).state == "finished"
    assert not [path for path in out.iterdir() if path.name == PARTS]


def test_a_difference_names_what_differs():
    assert difference(REQUEST, {**REQUEST, "model": "2222"}) == "another model (1111, asked for is 2222)"
    other = {**REQUEST, "prompts": {"clips": 4, "sha256": "bb"}}
    told = (
        "other prompts, or other seeds, tasks or negative prompts of them (clips 3, sha256 aa, asked for is"
    )
    assert difference(REQUEST, other).startswith(f"{told} clips 4")
    assert difference(REQUEST, {**REQUEST, "settings": {"sampler": {"steps": 3}}}) == (
        "generate.sampler.steps 2, asked for is 3"
    )


def test_a_folder_of_a_version_that_kept_no_decoder_goes_on_and_says_so(tmp_path):
    asked = {**REQUEST, "decoder": "d1"}
    begun(tmp_path / "clips", "a")
    folder = ClipFolder.of(tmp_path / "clips", asked, NAMES)
    assert (folder.state, folder.not_kept, list(folder.done())) == ("unfinished", "decoder_id", ["a"])
    folder.begin(1)
    fill(folder, "b", "c")
    folder.finish()
    kept = json.loads((tmp_path / "clips" / MARKER).read_text())["made_with"]
    assert kept == REQUEST  # what made `a` is not known, and is not said
    again = ClipFolder.of(tmp_path / "clips", asked, NAMES)
    assert (again.state, again.not_kept) == ("finished", "decoder_id")
    folder = ClipFolder.of(tmp_path / "clips", {**asked, "model": "2222"}, NAMES)
    assert folder.why == "made with another model (1111, asked for is 2222)"


def test_another_decoder_makes_other_clips_but_the_same_latents(tmp_path):
    begun(tmp_path / "latents", decoder="d1")
    folder = ClipFolder.of(tmp_path / "latents", {**REQUEST, "decoder": "d2"}, NAMES)
    folder.begin(1)
    assert folder.is_ours and folder.request["decoder"] == "d2"
    assert not (tmp_path / TRASH).exists()
    begun(tmp_path / "clips", "a", decoder="d1")
    with pytest.raises(ValueError, match=r"another decoder .* \(d1, asked for is d2\)"):
        ClipFolder.of(tmp_path / "clips", {**REQUEST, "decoder": "d2"}, NAMES)
    begun(tmp_path / "done", *NAMES, decoder="d1").finish()
    assert ClipFolder.of(tmp_path / "done", {**REQUEST, "decoder": "d2"}, NAMES).state == "replaced"


def requested(folder: Path, config: GenerateConfig, *rows: dict) -> dict:
    """The entries of what clips of these rows are made with that speak of the rows."""
    whole = [{"data_id": f"r{number}", "prompt": "A wall.", **row} for number, row in enumerate(rows)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    jobs = clip_jobs(read_prompts(folder / "p.jsonl"), config)
    files = digests_of_files(jobs)
    prompts = {"clips": len(jobs), "sha256": digest_of_jobs(jobs, files)}
    return {**REQUEST, "prompts": prompts, "asked": asked_of(jobs, files)}


def test_seeds_tasks_and_negative_prompts_are_named_apart_from_prompts(tmp_path):
    plain = GenerateConfig(seed=5)
    first = requested(tmp_path, plain, {}, {})
    assert first["asked"] | {"prompts": ""} == {
        "prompts": "",
        "seeds": "5",
        "tasks": "none",
        "negative_prompts": "none",
    }

    def changed(config: GenerateConfig, *rows: dict) -> str:
        return difference(first, requested(tmp_path, config, *rows))

    assert changed(replace(plain, seed=6), {}, {}) == "other seeds (5, asked for is 6)"
    assert changed(replace(plain, seeds=(5, 7)), {}, {}).startswith("other seeds (5, asked for is 5, 7 (")
    assert changed(replace(plain, task="T2A"), {}, {}) == "other tasks (none, asked for is T2A)"
    blurry = replace(plain, negative_prompt="blurry")
    assert changed(blurry, {}, {}) == "other negative prompts (none, asked for is blurry)"
    assert changed(plain, {}, {"prompt": "A ball."}).startswith("other prompts (2 (")
    assert changed(plain, {}, {"height": 64, "width": 64}).startswith("other prompts (2 (")
    swapped = [requested(tmp_path, plain, {"seed": a}, {"seed": b}) for a, b in ((1, 2), (2, 1))]
    assert difference(*swapped).startswith("other seeds (1, 2 (")


def test_a_folder_of_a_version_that_kept_less_of_its_prompts_is_the_same(tmp_path):
    (tmp_path / "v.wav").write_bytes(b"a voice")
    spoken = {"prompt": "Says <S>no<E>.", "spk_wavs": ["v.wav"], "seed": 3, "meta": {"k": 1}}
    asked = {**requested(tmp_path, GenerateConfig(), spoken), "decoder": "d", "adapters": "ab=0.12345671"}
    said = {"name": "r0", "seed": 3, "data_id": "r0", "prompt": "Says <S>no<E>.", "negative": "", "task": ""}
    said |= {"image": "", "references": [hashlib.sha256(b"a voice").hexdigest()]}
    said |= {"size": [None, None, None], "meta": {"k": 1}}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    earlier = {**REQUEST, "prompts": {"clips": 1, "sha256": digest}, "adapters": "ab=0.123457"}
    assert same_as(earlier, asked) and not same_as({**earlier, "adapters": "ab=0.123458"}, asked)
    assert not same_as({**earlier, "asked": asked["asked"]}, asked)  # which keeps scales whole

"""`nava curate` on prepared and encoded sets, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import main
from experiments.layout import Layout
from experiments.runs.run import RunRecord
from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.manifest import ManifestRow, read_manifest, write_manifest
from pretrain.data.stream.sample import Sample
from pretrain.data.stream.store import LatentStore
from pretrain.files import write_json
from pretrain.media.write import write_mp4


def prepared(folder: Path, count: int) -> Path:
    """A set as `nava prepare` writes it: clips in two colours and two pitches."""
    rows = []
    for number in range(count):
        frames = np.full((13, 32, 48, 3), 40 + 150 * (number % 2), np.uint8)
        frames[:, number : number + 4] = 255
        hertz = 200 + 500 * (number % 2)
        sound = 0.3 * np.sin(2 * np.pi * hertz * np.arange(8667) / 16_000)
        path = folder / "clips" / f"c{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(path, frames, 24.0, sound.astype(np.float32), 16_000)
        meta = {"reference_paths": ["references/a.wav"], "words": ["hello"]}
        quality = {"snr_db": 60.0 if number < 2 else 25.0}
        rows.append(
            ManifestRow(
                f"c{number}", path, 24.0, 13 / 24, 48, 32, "<S>hello<E>", (0.1,), (0.4,), quality, meta
            )
        )
    write_manifest(folder / "manifest.jsonl", rows)
    return folder


def encoded(folder: Path, count: int, sounds: bool = True) -> Path:
    generator = torch.Generator().manual_seed(0)
    with LatentWriter(folder, "codec", "bfloat16") as writer:
        for number in range(count):
            video = torch.randn(48, 4, 4, 6, generator=generator) + 5.0 * (number % 2)
            audio = torch.randn(128, 14, generator=generator) if sounds or number else None
            text, voice = torch.randn(8, 16, generator=generator), torch.randn(1, 192, generator=generator)
            writer.add(Sample(f"c{number}", video, audio, 6.0, text, torch.tensor([1]), voice, {"n": number}))
    return folder


def curated(*arguments: str | Path, tmp: Path) -> int:
    return main(["curate", "mini", "--out", str(tmp / "out"), "--nproc", "1", *map(str, arguments)])


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str | Path, tmp: Path) -> str:
    with pytest.raises(SystemExit) as ended:
        curated(*arguments, tmp=tmp)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_a_prepared_set_gives_rows_that_are_found(tmp_path, capsys):
    place = prepared(tmp_path / "set", 6)
    budget = ("--set", "curate.budget=2", "--set", "curate.quality_weight=1.0")
    assert curated("--clips", place, "--to", tmp_path / "chosen", *budget, tmp=tmp_path) == 0
    rows, _ = read_manifest(tmp_path / "chosen" / "curated.jsonl")
    assert [row.data_id for row in rows] == ["c0", "c1"]  # one of each colour, the clean ones
    assert all(row.data_path.is_file() for row in rows)
    assert rows[0].meta["reference_paths"] == ["../set/references/a.wav"]
    report = json.loads((tmp_path / "chosen" / "report.json").read_text())
    assert (report["rows"], report["chosen"]) == (6, 2)
    assert "2 of 6 clips" in capsys.readouterr().out
    assert not (tmp_path / ".chosen.work").exists()
    again = ("--clips", place / "manifest.jsonl", "--to", tmp_path / "chosen", *budget)
    assert curated(*again, tmp=tmp_path) == 0  # its own output is replaced


def test_an_encoded_set_gives_an_encoded_set(tmp_path):
    place = encoded(tmp_path / "latents", 8)
    labels = [
        ManifestRow(f"c{n}", Path("x.mp4"), 24.0, 1.0, 1, 1, "", (), (), {"snr_db": 60.0 if n > 5 else 20.0})
        for n in range(8)
    ]
    write_manifest(tmp_path / "labels.jsonl", labels)
    chosen = ("--labels", tmp_path / "labels.jsonl", "--set", "curate.quality_weight=1.0")
    to = tmp_path / "chosen"
    given = ("--clips", place, "--to", to, "--set", "curate.budget=2", *chosen)
    assert curated(*given, tmp=tmp_path) == 0
    whole, found = LatentStore(place), LatentStore(to)
    assert [sample.data_id for sample in found] == ["c6", "c7"] and found.codec_id == whole.codec_id
    for sample, original in zip(found, (whole[6], whole[7]), strict=True):
        for one in dataclasses.fields(sample):
            ours, theirs = getattr(sample, one.name), getattr(original, one.name)
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    assert found.manifest["curation"]["chosen"] == 2


def test_what_it_has_not_it_says(tmp_path, capsys):
    place, to = prepared(tmp_path / "set", 2), ("--to", tmp_path / "to")
    assert "no corpus to curate; run `nava corpus mini` first" in refused(capsys, tmp=tmp_path)
    assert "give --to FOLDER" in refused(capsys, "--clips", place, tmp=tmp_path)
    assert "belong to --clips" in refused(capsys, *to, tmp=tmp_path)
    (tmp_path / "videos").mkdir()
    error = refused(capsys, "--clips", tmp_path / "videos", *to, tmp=tmp_path)
    assert "neither manifest.jsonl" in error and "nava prepare" in error
    assert "no such file" in refused(capsys, "--clips", tmp_path / "gone", *to, tmp=tmp_path)
    labels = ("--labels", place / "manifest.jsonl")
    assert "has labels of its own" in refused(capsys, "--clips", place, *to, *labels, tmp=tmp_path)
    latents = encoded(tmp_path / "latents", 3)
    model = ("--set", "curate.embedding=experiments.preparation.embeddings:VoiceFeatures")
    assert "curated by its latents" in refused(capsys, "--clips", latents, *to, *model, tmp=tmp_path)
    mixed = encoded(tmp_path / "mixed", 3, sounds=False)
    assert "with and without" in refused(capsys, "--clips", mixed, *to, tmp=tmp_path)
    write_manifest(tmp_path / "other.jsonl", [ManifestRow("z", Path("x"), 1, 1, 1, 1, "", (), ())])
    labels = ("--labels", tmp_path / "other.jsonl")
    assert "none of its data_ids" in refused(capsys, "--clips", latents, *to, *labels, tmp=tmp_path)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").write_text("mine")
    assert "not empty" in refused(capsys, "--clips", place, *to, tmp=tmp_path)
    assert (tmp_path / "to" / "mine.txt").read_text() == "mine"


def test_the_corpus_of_another_recipe_is_refused(tmp_path, capsys):
    layout = Layout(out=tmp_path / "out")
    layout.corpus.mkdir(parents=True)
    (layout.corpus / "paired.jsonl").write_text("{}\n")
    record = RunRecord("corpus", "k", "mini", "", False, "", {}, {}, {}, "", "", 0.0, "", "")
    write_json(layout.runs / "corpus.json", dataclasses.asdict(record))
    with pytest.raises(SystemExit) as ended:
        main(["curate", "nava_6b", "--out", str(layout.out)])
    assert ended.value.code == 2
    assert "is the corpus of recipe mini, not of nava_6b" in capsys.readouterr().err

"""models:/NAME@ALIAS and versions as folders: parsing, refusals, the cache, concurrent and broken downloads,
and generation from an empty folder."""

from __future__ import annotations

import json
import multiprocessing
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_world import model_folder_of, open_store, send, started
from model_cases import debug_model

from experiments.cli import main
from experiments.runs import registry, run
from experiments.runs.model_files import check_model_files
from experiments.runs.model_names import ALIGNED, codec_tags, model_tags
from experiments.runs.model_uri import parse_model_uri
from experiments.runs.registry import fetched, model_and_codec, model_cache
from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.media.read import read_metadata
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor

NAME = "nava-mini"


@pytest.fixture
def store(tmp_path, monkeypatch, empty_database):
    """A store with two versions in a folder of its own, named by MLFLOW_TRACKING_URI from an empty one."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    client = open_store(home, monkeypatch, empty_database)
    for number, alias in (("one", "pretrained"), ("two", "aligned")):
        model_folder_of(Path(number), number.encode())
        register(Path(number), alias)
    assert send() == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.chdir(away)
    return client


def register(folder: Path, alias: str = "", name: str = NAME) -> None:
    tracker = started()
    tracker.log_model(folder, "mini", {**codec_tags(folder), **model_tags(folder)}, name, alias)
    tracker.finish("FINISHED")


def weights_at(folder: Path) -> bytes:
    return (folder / "ema.safetensors").read_bytes()


WORD = st.text(string.ascii_letters + string.digits + "-_. ", min_size=1, max_size=40).filter(
    lambda text: text.strip(". ") != ""
)
ALIAS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=40)


@given(WORD, ALIAS, st.integers(1, 999_999_999))
def test_names_versions_and_aliases_are_read_back(name, alias, version):
    by_alias, by_version = (
        parse_model_uri(f"models:/{name}@{alias}"),
        parse_model_uri(f"models:/{name}/{version}"),
    )
    assert (by_alias.name, by_alias.alias, by_alias.changes) == (name, alias, True)
    assert (by_version.name, by_version.version, by_version.changes) == (name, version, False)
    assert parse_model_uri(f"models:/{name}/latest").latest


@given(st.text(max_size=60))
def test_nothing_that_is_taken_leaves_the_cache(text):
    try:
        parsed = parse_model_uri(f"models:/{text}")
    except ValueError as error:
        assert "\n" not in str(error) and "expected models:/NAME/VERSION" in str(error)
        return
    name = parsed.name or parsed.model_id
    assert name and not set(name) & set("/\\:@?#%'\"`*\0\n") and name.strip(". ")
    found = registry.RegisteredModel(name, str(parsed.version), "", "i", "", "")
    cache = Path("/cache")
    assert registry._place(found, cache).resolve().parent.parent == cache


@pytest.mark.parametrize(
    "text",
    [
        "models:/",
        "models:/nava-mini",
        "models:/nava-mini@",
        "models:/@aligned",
        "models:/../1",
        "models:/..@aligned",
        "models:/a/../1",
        "models:/a/b/1",
        "models:/a/1/",
        "models:/a/0",
        "models:/a/1.0",
        "models:/a/-1",
        "models:/a/²",
        "models:/a/99999999999",
        "models:/a@b/c",
        "models:/a@b@c",
        "models:/a@../b",
        "models:/a%2F..@b",
        "models:/a@b?x=1",
        "models:/a'b/1",
        "models:/a\nb/1",
        "models:/a/Production",
        "models:a/1",
    ],
)
def test_what_is_no_uri_of_a_model_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="expected models:/NAME/VERSION") as error:
        parse_model_uri(text)
    assert "\n" not in str(error.value)


def test_an_alias_is_asked_anew_and_a_version_fetched_once(store, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert weights_at(fetched(f"models:/{NAME}@aligned", cache, Path())) == b"two"
    first = fetched(f"models:/{NAME}@pretrained", cache, Path())
    assert first == fetched(f"models:/{NAME}/1", cache, Path()) and weights_at(first) == b"one"
    store.set_registered_model_alias(NAME, "aligned", "1")
    monkeypatch.setattr(registry.RegisteredModel, "download", None)  # nothing is fetched again
    assert fetched(f"models:/{NAME}@aligned", cache, Path()) == first
    assert weights_at(fetched(f"models:/{NAME}/latest", cache, Path())) == b"two"


def test_a_logged_model_without_a_name_is_fetched_by_its_id(store, tmp_path):
    experiment = store.get_experiment_by_name("nava").experiment_id
    ids = [model.model_id for model in store.search_logged_models([experiment])]
    found = {weights_at(fetched(f"models:/{model_id}", tmp_path / "cache", Path())) for model_id in ids}
    assert found == {b"one", b"two"}


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (
            "models:/nava-mini@algned",
            r"no alias 'algned'; aliases: aligned \(version 2\), pretrained \(version 1\)",
        ),
        ("models:/nava-mini/3", "no version 3; .*versions: 2, 1"),
        ("models:/nava-mimi@aligned", "no model 'nava-mimi'; did you mean 'nava-mini'"),
        (f"models:/m-{'0' * 32}", "no logged model of this id"),
    ],
)
def test_a_refusal_names_what_there_is(store, tmp_path, uri, says):
    with pytest.raises(ValueError, match=says) as error:
        fetched(uri, tmp_path / "cache", Path())
    assert "\n" not in str(error.value) and "does not give it" in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_name_that_was_deleted_and_made_anew_is_another_model(store, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert weights_at(fetched(f"models:/{NAME}/1", cache, Path())) == b"one"
    store.delete_registered_model(NAME)  # MLflow counts its versions from 1 again
    monkeypatch.chdir(tmp_path / "home")
    model_folder_of(Path("other"), b"other")
    register(Path("other"))
    assert send() == 0
    assert weights_at(fetched(f"models:/{NAME}/1", cache, Path())) == b"other"


def test_a_version_in_the_cache_serves_while_the_store_does_not_answer(store, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    kept = fetched(f"models:/{NAME}/1", cache, Path())
    fetched(f"models:/{NAME}@aligned", cache, Path())
    monkeypatch.setattr(
        registry.RegistryStore,
        "resolve",
        lambda *_: (_ for _ in ()).throw(registry.Unanswered("it does not answer")),
    )
    assert fetched(f"models:/{NAME}/1", cache, Path()) == kept
    assert "the copy in" in capsys.readouterr().err
    with pytest.raises(ValueError, match="does not answer"):
        fetched(f"models:/{NAME}@aligned", cache, Path())  # which may have moved


def test_half_a_download_is_never_taken_for_a_model(store, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    real = registry.RegisteredModel.download

    def cut(self, folder):
        place = real(self, folder)
        (place / "ema.safetensors").write_bytes(b"tw")
        return place

    def gone(self, folder):
        real(self, folder)
        raise ValueError("connection lost")

    for broken, says in ((cut, "damaged"), (gone, "connection lost")):
        monkeypatch.setattr(registry.RegisteredModel, "download", broken)
        with pytest.raises(ValueError, match=says) as error:
            fetched(f"models:/{NAME}/2", cache, Path())
        assert "\n" not in str(error.value) and not list(cache.rglob("config.json"))
    monkeypatch.setattr(registry.RegisteredModel, "download", real)
    assert weights_at(fetched(f"models:/{NAME}/2", cache, Path())) == b"two"


def test_a_version_whose_files_are_another_model_is_refused(store, tmp_path):
    cache = tmp_path / "cache"
    kept = fetched(f"models:/{NAME}/1", cache, Path())
    found = json.loads((kept / "config.json").read_text())["checkpoint_id"]
    for version in ("1", "2"):  # one that an earlier version of this code fetched, and one that is not there
        store.set_model_version_tag(NAME, version, "nava.checkpoint_id", "feedfeedfeedfeed")
        with pytest.raises(ValueError, match="in place of checkpoint feedfeedfeedfeed") as error:
            fetched(f"models:/{NAME}/{version}", cache, Path())
        assert "\n" not in str(error.value)
    assert [path for path in (cache / NAME).iterdir() if path.is_dir()] == [kept]
    store.set_model_version_tag(NAME, "1", "nava.checkpoint_id", found)
    assert fetched(f"models:/{NAME}/1", cache, Path()) == kept


def fetch_in_a_process(cache: Path, results: multiprocessing.SimpleQueue) -> None:
    found = fetched(f"models:/{NAME}/2", cache, Path())
    results.put((str(found), weights_at(found)))


def test_downloads_at_the_same_time_give_one_whole_folder(store, tmp_path):
    cache, context = tmp_path / "cache", multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=fetch_in_a_process, args=(cache, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert {content for _, content in found} == {b"two"} and len({place for place, _ in found}) == 1
    assert [path.name for path in (cache / NAME).iterdir() if path.is_dir()] == [Path(found[0][0]).name]


@pytest.mark.parametrize("names", [("ema",), ("model",), ("ema-00001-of-00002", "ema-00002-of-00002")])
def test_weights_are_those_of_the_checkpoint_id(tmp_path, names):
    import torch

    size = 100 if len(names) > 1 else 1 << 20
    weights = {names[0].partition("-")[0]: {"a": torch.ones(20), "b": torch.zeros(20)}}
    write_model(tmp_path, "debug", flavor("debug"), weights, {}, max_bytes=size)  # type: ignore[arg-type]
    assert {f"{name}.safetensors" for name in names} == {path.name for path in tmp_path.glob("*.safetensors")}
    check_model_files(tmp_path, "x")
    last = tmp_path / f"{names[-1]}.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        check_model_files(tmp_path, "x")
    if len(names) > 1:
        last.unlink()
        with pytest.raises(ValueError, match="1 of 2 shards"):
            check_model_files(tmp_path, "x")


def test_models_are_kept_in_the_repository_or_with_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert model_cache(Path("out"), tmp_path) == tmp_path / "cache" / "nava" / "models"
    (tmp_path / "dvc.yaml").write_text("")
    assert model_cache(Path("out"), tmp_path) == Path("out/models")


def test_the_codec_of_a_model_is_the_default_one_only_where_it_is_the_same(store, tmp_path, monkeypatch):
    default = Path("out/codec")
    default.mkdir(parents=True)
    (default / "config.json").write_text(json.dumps({"kind": "linear", "codec_id": "c0dec"}))
    uri = f"models:/{NAME}@aligned"
    assert model_and_codec(uri, None, Path("out"), default)[1] == default
    assert model_and_codec(uri, Path("mine"), Path("out"), default)[1] == Path("mine")
    (default / "config.json").write_text(json.dumps({"kind": "linear", "codec_id": "another"}))
    with pytest.raises(ValueError, match=r"its codec c0dec is not in .*; give --codec"):
        model_and_codec(uri, None, Path("out"), default)
    monkeypatch.chdir(tmp_path / "home")
    codec = Path("codec")
    codec.mkdir()
    (codec / "config.json").write_text(json.dumps({"kind": "linear", "codec_id": "c0dec"}))
    register(codec, name=f"{NAME}-codec")
    assert send() == 0
    place = model_and_codec(uri, None, Path("out"), default)[1]
    assert json.loads((place / "config.json").read_text())["codec_id"] == "c0dec"
    assert model_and_codec("folder", None, Path("out"), default) == (Path("folder"), default)


def test_clips_from_an_empty_folder_by_alias(tmp_path, monkeypatch, empty_database, capsys):
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    client = open_store(home, monkeypatch, empty_database)
    talk = dict.fromkeys(("talk_a", "talk_b", "talk_test"), 0)
    build_corpus(
        CorpusConfig(paired=40, audio_only=40, hq_audio=20, validation=4, processes=1, **talk), Path("corpus")
    )
    fit_codecs(CodecConfig(), Path("corpus"), Path("codec"))
    codec_id = json.loads(Path("codec/config.json").read_text())["codec_id"]
    weights = {"ema": debug_model().state_dict()}
    checkpoint = write_model(Path("model"), "debug", flavor("debug"), weights, {"codec_id": codec_id})  # type: ignore[arg-type]
    register(Path("codec"), name=f"{NAME}-codec")
    register(Path("model"), ALIGNED)
    assert send() == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.chdir(away)
    monkeypatch.setattr(run, "ensure_sender", lambda spool, root: None)
    Path("prompts.jsonl").write_text('{"data_id": "a", "prompt": "A ball bounces.", "num_frames": 5}\n')
    quick = ["--set", "generate.sampler.steps=1", "--set", "generate.bf16=false"]
    asked = ["generate", "prompts.jsonl", "--model", f"models:/{NAME}@aligned", "--to", "clips", *quick]
    assert main(asked) == 0
    assert read_metadata(Path("clips/a.mp4"))["checkpoint_id"] == checkpoint
    assert f"models:/{NAME}/1" in capsys.readouterr().err
    for path in Path("out/tracking").glob("*-generate-*"):
        events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
        assert f"checkpoint:{checkpoint}" in events[0]["models"].values()
        assert f"codec:{codec_id}" in events[0]["models"].values()
        assert f"models:/{NAME}/1" in events[0]["tags"]["nava.registered_model"]
        break
    else:
        pytest.fail("no run of generate")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "prompts.jsonl", "--model", f"models:/{NAME}@algned", "--to", "c"])
    assert "no alias 'algned'" in capsys.readouterr().err and not Path("c").exists()
    assert client.get_model_version_by_alias(NAME, "aligned").tags["nava.checkpoint_id"] == checkpoint

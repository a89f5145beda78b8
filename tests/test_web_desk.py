"""What the page does, without Gradio: jobs, files that are kept, scores."""

import json
import math

import numpy as np
import pytest
import soundfile
from PIL import Image
from video_world import SMALL, TOKEN, FakeWorker, offer, wait_until
from web_world import desk_of, served

from experiments.generation_client import GenerationServer, Refused
from experiments.web.desk import SeenClip
from experiments.web.form import PageForm
from experiments.web.scores import PageScorer, checked_rewards, told, usual_rewards
from experiments.web.services import ModelSide
from experiments.web.store import PageStore
from experiments.web.views import clip_html, facts_html, history_row, progress_html, progress_of, seconds
from orchestration.generation_service.app import AppConfig, build_video_app
from orchestration.service.access import digest_of
from pretrain.media.write import write_mp4, write_wav
from rewards.catalog import CATALOG

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
A, B = ModelSide("", "mini"), ModelSide("", "mini", "look", 0.5)
SOUND = 0.1 * np.sin(np.arange(16_000) / 7).astype(np.float32)


@pytest.fixture
def world(tmp_path):
    """(desk, worker, url): a service whose clips are no media."""
    worker = FakeWorker()
    config = AppConfig(offer=offer(), folder=tmp_path / "v", limits=SMALL, batch=1)
    with served(build_video_app(config, digest_of(TOKEN), lambda: [worker])) as url:
        desk = desk_of(tmp_path, ("snr_estimate_db",), _=url)
        yield desk, worker, url
        desk.close()


def settled(desk, comparison) -> list[list[SeenClip]]:
    wait_until(
        lambda: all(clip.settled for pair in desk.look(comparison) for clip in pair), "all is settled", 60
    )
    return desk.look(comparison)


def test_pairs_from_the_form_to_their_files(world):
    desk, _, _ = world
    made = desk.make(PageForm(prompt="A ball.", seeds=(3, 4)), [A, B])
    pairs = settled(desk, made)
    assert [[(clip.label, clip.seed, clip.job["seed"]) for clip in pair] for pair in pairs] == [
        [("mini", seed, seed), ("mini+look@0.5", seed, seed)] for seed in (3, 4)
    ]
    clip = pairs[0][1]
    assert clip.job["adapters"] == {"look": 0.5} and clip.files["video"].read_bytes() == b"video A ball."
    assert clip.scores and clip.scores[0].score["value"] is None
    assert "none: " in told(clip.scores[0]) and "snr_estimate_db, by this page" in facts_html(clip)
    assert "4 of 4 clips made" in progress_html(pairs)
    # another process finds it by its key
    key = desk.store.keep_comparison(made)
    again = PageStore(desk.store.root).comparison(key)
    assert again["pairs"] == json.loads(json.dumps(made["pairs"]))
    for wrong in ("", None, "../x", "0" * 32, 7, key + "/"):
        assert desk.store.comparison(wrong) == {}
    jobs, further, told_of = desk.history({})
    assert len(jobs) == 4 and not further and not told_of
    assert history_row(*jobs[0])[1:] == ["completed", "mini+look@0.5", "4", "A ball."]
    desk.forget("", clip.job["id"])
    assert not clip.files["video"].exists() and len(desk.history({})[0]) == 3
    with pytest.raises(Refused, match="no such job"):
        desk.forget("", clip.job["id"])
    assert "no such job" in desk.look(made)[0][1].problem and desk.look(made)[0][1].settled


def test_waiting_and_cancelling(world):
    desk, worker, _ = world
    made = desk.make(PageForm(prompt="hold"), [A, B])
    wait_until(lambda: desk.look(made)[0][0].job["progress"] == 50, "half done")
    running, waiting = desk.look(made)[0]
    assert progress_of(running) == ("is made, 50 %, no estimate yet", 0.5)
    assert progress_of(waiting)[0].startswith("waits, next")
    assert "is on its way" in clip_html(running, "A") and facts_html(running) == ""
    desk.cancel(made)
    assert [progress_of(clip)[0] for clip in settled(desk, made)[0]] == ["cancelled"] * 2
    worker.go = True


def test_a_failure_has_the_services_reason(world):
    desk, _, _ = world
    (pair,) = settled(desk, desk.make(PageForm(prompt="bad"), [A]))
    assert progress_of(pair[0]) == ("failed: latents that are NaN", None)
    assert "failed: latents that are NaN" in clip_html(pair[0], "")


def test_a_refusal_leaves_nothing_that_runs(world, monkeypatch):
    desk, worker, _ = world
    with pytest.raises(ValueError, match="steps: 999; from 1 to 200"):
        desk.make(PageForm(prompt="A ball.", steps=999), [A])
    real, calls = GenerationServer.create, []

    def second_is_refused(self, *arguments, **fields):
        calls.append(fields)
        if len(calls) == 2:
            raise Refused("token team: 64 jobs wait", 429)
        return real(self, *arguments, **fields)

    monkeypatch.setattr(GenerationServer, "create", second_is_refused)
    with pytest.raises(Refused, match="64 jobs wait"):
        desk.make(PageForm(prompt="hold"), [A, B])
    wait_until(lambda: desk.history({})[0][0][1]["status"] == "cancelled", "the first one is cancelled")
    worker.go = True


def test_a_service_that_is_away_loses_nothing(world, monkeypatch):
    desk, _, _ = world
    made = desk.make(PageForm(prompt="A ball."), [A])
    with monkeypatch.context() as patch:
        patch.setattr(GenerationServer, "poll", _away)
        clip = desk.look(made)[0][0]
        assert clip.problem == "http://x: away" and not clip.ended and not clip.settled
    assert settled(desk, made)[0][0].job["status"] == "completed"


def _away(self, id):
    raise ConnectionError("http://x: away")


def test_history_goes_on_where_it_ended(world, monkeypatch):
    import experiments.web.desk as desk_module

    desk, _, _ = world
    made = desk.make(PageForm(prompt="A ball.", seeds=(1, 2, 3)), [A])
    settled(desk, made)
    monkeypatch.setattr(desk_module, "LISTED", 2)
    first, further, _ = desk.history({})
    rest, end, _ = desk.history(further)
    assert [job["seed"] for _, job in (*first, *rest)] == [3, 2, 1] and not end


def test_what_is_sent_is_kept_by_its_content(tmp_path):
    store = PageStore(tmp_path / "web")
    write_wav(tmp_path / "a.wav", SOUND, 16_000)
    soundfile.write(tmp_path / "b.ogg", SOUND, 16_000)
    kept = store.keep_voice(tmp_path / "a.wav")
    assert (
        kept.read_bytes() == (tmp_path / "a.wav").read_bytes()
        and store.keep_voice(tmp_path / "a.wav") == kept
    )
    heard, rate = soundfile.read(store.keep_voice(tmp_path / "b.ogg"))
    assert rate == 16_000 and abs(len(heard) - 16_000) < 200
    assert np.corrcoef(heard[:15_000], SOUND[:15_000])[0, 1] > 0.99
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "c.webp", lossless=True)
    picture = store.keep_frame(tmp_path / "c.webp")
    assert picture.suffix == ".png" and Image.open(picture).getpixel((3, 3)) == (200, 10, 10)
    (tmp_path / "d.mp3").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"d\.mp3"):
        store.keep_voice(tmp_path / "d.mp3")
    assert (tmp_path / "web").stat().st_mode & 0o777 == 0o700


def test_clips_are_bounded_and_ids_name_files_only_here(tmp_path):
    class Server:
        def fetch(self, id, path, variant):
            path.write_bytes(b"x" * 100)

    store = PageStore(tmp_path / "web", most_bytes=250)
    for number in range(4):
        files = store.fetch(Server(), {"id": f"v{number}", "video_bytes": 9, "audio_bytes": 0})  # type: ignore[arg-type]
        assert files["video"].is_file()
    held = sorted(path.name for path in (tmp_path / "web" / "clips").iterdir())
    assert len(held) == 2 and held[-1] == "v3.mp4"
    for id in ("../a", "a/b", "", "a" * 99, ".."):
        with pytest.raises(ValueError, match="no name for files"):
            store.clip({"id": id})


def test_scores_and_reasons(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, 24.0, SOUND, 16_000, {})
    rewards = (
        "lip_loudness_correlation",
        "snr_estimate_db",
        "syncnet",
        "sim_resemblyzer",
        "wer_pocketsphinx",
    )
    scorer = PageScorer(checked_rewards(rewards, (), tmp_path))
    job = {"id": "v1", "prompt": "Says <S>xylophone<E>.", "references": [True]}
    asked = {"mouth_boxes": [[4, 4, 20, 20]]}
    wait_until(lambda: scorer.scores(job, {"video": tmp_path / "a.mp4"}, asked) is not None, "scored", 120)
    found = {one.reward: one for one in scorer.scores(job, {"video": tmp_path / "a.mp4"}, asked) or ()}
    scorer.close()
    assert list(found) == list(rewards)
    assert math.isfinite(found["lip_loudness_correlation"].score["value"])
    assert "dB (higher is better)" in told(found["snr_estimate_db"])
    assert told(found["syncnet"]) == "none: syncnet: weights missing; set syncnet.weights=PATH"
    assert (
        told(found["sim_resemblyzer"])
        == "none: its voices were sent from elsewhere; this page does not have them"
    )
    assert told(found["wer_pocketsphinx"]) == "none: xylophone: not in the recogniser's vocabulary"


def test_the_usual_rewards(tmp_path):
    assert usual_rewards(tmp_path) == ("lip_loudness_correlation", "wer_pocketsphinx", "sim_resemblyzer")
    (tmp_path / "syncnet" / "reward").mkdir(parents=True)
    assert usual_rewards(tmp_path)[0] == "sync_mini"
    about = [CATALOG[name].about for name in usual_rewards(tmp_path)]
    assert about == ["speech", "speech", "voice"]
    with pytest.raises(ValueError, match="unknown reward 'nothing'"):
        checked_rewards(("nothing",), (), tmp_path)
    with pytest.raises(ValueError, match="is not asked for"):
        checked_rewards(("snr_estimate_db",), ("wer_whisper.language=zh",), tmp_path)


def test_nothing_of_others_is_markup():
    evil = "<img src=x onerror=alert(1)>"
    job = {"id": "a", "status": "failed", "error": {"message": evil}, "warnings": [evil], "seed": 1}
    clip = SeenClip(evil, "", 1, job, files={}, scores=())
    shown = (
        clip_html(clip, "A")
        + progress_html([[clip]], [evil])
        + clip_html(SeenClip(evil, "", 1, {}, evil), "B")
    )
    assert "<img" not in shown and "&lt;img" in shown


def test_durations():
    assert [seconds(value) for value in (0.4, 59.4, 60, 3599, 3661)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 1 min",
    ]

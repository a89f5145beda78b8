"""The ComfyUI nodes: their interface as documented, and clips through a service over a real socket."""

import copy
import http.server
import json
import sys
import threading
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from comfyui_nodes import load_pack, problems, run_workflow
from test_service_client import listening
from test_video_ray import PORT, end, serve
from video_model import shared_model
from video_world import SMALL, TOKEN, FakeWorker, offer, wait_until

from orchestration.generation_service.app import AppConfig, build_video_app
from orchestration.generation_service.offer import Wanted
from orchestration.service.access import digest_of
from pretrain.media.read import read_media
from pretrain.media.write import write_mp4, write_wav

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui_nava"
RATE = 16_000
FRAMES = np.linspace(0, 255, 5 * 32 * 64 * 3).astype(np.uint8).reshape(5, 32, 64, 3)
SOUND = (0.5 * np.sin(np.arange(RATE // 4) * 0.2)).astype(np.float32)


class Filming(FakeWorker):
    """Its clips are files that can be decoded; what was asked for is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Wanted] = []

    def _made(self, task):
        made = super()._made(task)
        self.asked.append(Wanted.from_json(task.wanted))
        for kind, path in made.files.items():
            if kind == "video":
                write_mp4(path, FRAMES, 24.0, SOUND, RATE, {})
            else:
                write_wav(path, SOUND, RATE)
        return made


@pytest.fixture(scope="module")
def pack():
    return load_pack(FOLDER)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    worker = Filming()
    config = AppConfig(offer=offer(), folder=tmp_path_factory.mktemp("c") / "v", limits=SMALL, batch=1)
    with listening(build_video_app(config, digest_of(TOKEN), lambda: [worker])) as url:
        yield url, worker


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    """ComfyUI's own modules that the nodes use, by its documentation; `shown` gets the progress."""
    out, shown = tmp_path / "output", []
    folders = types.ModuleType("folder_paths")

    def save_path(prefix, folder, *_):
        where = Path(folder) / Path(prefix).parent
        where.mkdir(parents=True, exist_ok=True)
        return str(where), Path(prefix).name, 1, str(Path(prefix).parent), prefix

    folders.get_output_directory = lambda: str(out)  # type: ignore[attr-defined]
    folders.get_save_image_path = save_path  # type: ignore[attr-defined]
    utils, management = types.ModuleType("comfy.utils"), types.ModuleType("comfy.model_management")
    utils.ProgressBar = lambda total: types.SimpleNamespace(  # type: ignore[attr-defined]
        update_absolute=lambda value, total: shown.append(value)
    )
    management.throw_exception_if_processing_interrupted = lambda: None  # type: ignore[attr-defined]
    for name, module in (
        ("folder_paths", folders),
        ("comfy", types.ModuleType("comfy")),
        ("comfy.utils", utils),
        ("comfy.model_management", management),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("NAVA_TOKEN", TOKEN)
    return types.SimpleNamespace(out=out, shown=shown, management=management)


def workflow(url: str, **sample: object) -> dict:
    steps = json.loads((FOLDER / "workflow_api.json").read_text())
    steps["1"]["inputs"]["url"] = url
    steps["2"]["inputs"] |= sample
    return steps


def test_nodes_are_as_comfyui_documents_them(pack):
    assert problems(pack) == []
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)


def test_the_checker_finds_what_comfyui_would_not_take(pack):
    def found(**changes) -> str:
        node = type("Node", (pack.NODE_CLASS_MAPPINGS["NavaDecode"],), changes)
        broken = types.SimpleNamespace(NODE_CLASS_MAPPINGS={**pack.NODE_CLASS_MAPPINGS, "Node": node})
        return "; ".join(problems(broken))  # type: ignore[arg-type]

    def inputs(given):
        return classmethod(lambda cls: given)

    assert found() == ""
    assert "RETURN_NAMES: 1 for 3 outputs" in found(RETURN_NAMES=("a",))
    assert "FUNCTION: names no method" in found(FUNCTION="gone")
    assert "it would never run" in found(RETURN_TYPES=(), RETURN_NAMES=())
    assert "decode does not take it" in found(INPUT_TYPES=inputs({"required": {"other": ("INT",)}}))
    assert "is no type of ComfyUI" in found(INPUT_TYPES=inputs({"required": {"clip": ("NOTHING",)}}))
    assert "is none of the choices" in found(
        INPUT_TYPES=inputs({"required": {"clip": (["a"], {"default": "b"})}})
    )


def test_a_workflow_from_its_prompt_to_its_files(pack, service, comfy, monkeypatch):
    url, worker = service
    steps = workflow(url, prompt="Two: <S>one<E>.", seed=7, task="TIA2AV", guidance="text_audio=3")
    steps |= {
        "4": {"class_type": "NavaAdapter", "inputs": {"server": ["1", 0], "name": "look", "scale": 0.5}},
        "5": {"class_type": "NavaDecode", "inputs": {"clip": ["2", 0]}},
    }
    steps["2"]["inputs"]["server"] = ["4", 0]
    sample = pack.NODE_CLASS_MAPPINGS["NavaSample"]
    voice = {"waveform": torch.from_numpy(SOUND)[None, None], "sample_rate": RATE}
    server = run_workflow(pack, {**steps, "3": save_of("2")} | stub_inputs(steps, pack, voice, monkeypatch))[
        "4"
    ][0]
    assert server.adapters == ("look=0.5",) and TOKEN not in repr(server)
    wanted = worker.asked[-1]
    assert (wanted.row["seed"], wanted.row["task"], wanted.row["data_id"]) == (7, "TIA2AV", "comfyui")
    files = sorted(path.name for path in comfy.out.rglob("*.*"))
    assert files == ["clip_00001_.mp4", "clip_00001_.wav"]
    clip = read_media(comfy.out / "nava" / "clip_00001_.mp4")
    assert clip.frames is not None and clip.frames.shape == FRAMES.shape
    assert comfy.shown[-1] == 100 and sample.FUNCTION == "sample"


def save_of(id: str) -> dict:
    return {"class_type": "NavaSave", "inputs": {"clip": [id, 0], "filename_prefix": "nava/clip"}}


def stub_inputs(steps, pack, voice, monkeypatch) -> dict:
    """LoadImage and LoadAudio of ComfyUI, linked to the sampler."""

    class Load:
        RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE", "AUDIO"), "load", "tests"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def load(self):
            return torch.rand(1, 40, 50, 3), voice

    monkeypatch.setitem(pack.NODE_CLASS_MAPPINGS, "Load", Load)
    linked = copy.deepcopy(steps["2"])
    linked["inputs"] |= {"first_frame": ["6", 0], "voice_1": ["6", 1]}
    return {"2": linked, "6": {"class_type": "Load", "inputs": {}}}


def test_decoded_clips_are_comfyui_s_tensors(pack, service, comfy, monkeypatch):
    url, _ = service
    steps = workflow(url, prompt="A ball.")
    steps["3"] = {"class_type": "NavaDecode", "inputs": {"clip": ["2", 0]}}
    steps["4"] = {"class_type": "NavaDecodeSound", "inputs": {"clip": ["2", 0]}}
    for name in ("NavaDecode", "NavaDecodeSound"):
        monkeypatch.setattr(pack.NODE_CLASS_MAPPINGS[name], "OUTPUT_NODE", True, raising=False)
    answers = run_workflow(pack, steps)
    frames, sound, fps = answers["3"]
    assert fps == 24.0 and frames.shape == FRAMES.shape
    assert float((frames - torch.from_numpy(FRAMES) / 255).abs().mean()) < 0.05  # h264
    assert sound["sample_rate"] == RATE
    assert np.allclose(sound["waveform"][0, 0].numpy(), SOUND, atol=1e-4)
    assert torch.equal(answers["4"][0]["waveform"], sound["waveform"])
    media = sys.modules[f"{pack.__name__}.media"]
    again = media.sound_of(media.wav_of(sound))
    assert torch.allclose(again["waveform"], sound["waveform"], atol=1e-4)


def test_sound_alone_has_no_pictures(pack, service, comfy):
    url, _ = service
    answers = run_workflow(pack, workflow(url, prompt="Rain.", task="T2A"))
    clip = answers["2"][0]
    assert clip.video is None and clip.audio
    assert [path.suffix for path in comfy.out.rglob("*.*")] == [".wav"]
    with pytest.raises(RuntimeError, match="task T2A makes no pictures; use NAVA Decode Sound"):
        pack.NODE_CLASS_MAPPINGS["NavaDecode"]().decode(clip)


def test_what_is_wrong_is_one_line(pack, service, comfy, monkeypatch):
    url, _ = service
    service_module = sys.modules[f"{pack.__name__}.service"]
    monkeypatch.setattr(service_module, "BACKOFF_S", 0.01)

    def fails(message: str, steps: dict) -> None:
        with pytest.raises(RuntimeError, match=message) as found:
            run_workflow(pack, steps)
        assert "\n" not in str(found.value) and TOKEN not in str(found.value)

    fails("prompt.*<S> at character", workflow(url, prompt="A man: <S>hello"))
    fails("latents that are NaN", workflow(url, prompt="A bad one."))
    fails("width", workflow(url, prompt="A ball.", width=48))
    fails("not reached.*is `nava serve generate` running", workflow("http://127.0.0.1:9"))
    for address in ("file:///etc/passwd", "http://me:secret@127.0.0.1", "http://[::1", "127.0.0.1:80"):
        fails("url: expected http", workflow(address))
    with_adapter = workflow(url)
    with_adapter["4"] = {
        "class_type": "NavaAdapter",
        "inputs": {"server": ["1", 0], "name": "x", "scale": 1.0},
    }
    with_adapter["2"]["inputs"]["server"] = ["4", 0]
    fails("adapter 'x' is not served; served are: look, voice", with_adapter)
    monkeypatch.setenv("NAVA_TOKEN", "another-token-that-nobody-has-given")
    fails("status 401", workflow(url))
    monkeypatch.delenv("NAVA_TOKEN")
    fails("the environment variable NAVA_TOKEN has no token", workflow(url))


def test_a_stranger_s_workflow_sends_secrets_nowhere(pack, comfy, monkeypatch):
    """Neither to another machine, by a redirect or by its name, nor what is no token of this service."""
    service_module = sys.modules[f"{pack.__name__}.service"]
    monkeypatch.setattr(
        service_module.urllib.request.OpenerDirector, "open", lambda *_, **__: pytest.fail("sent")
    )
    connect = pack.NODE_CLASS_MAPPINGS["NavaConnect"]().connect
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for url, variable, message in (
        ("http://127.0.0.1:1", "AWS_SECRET_ACCESS_KEY", "token_variable: expected NAVA_TOKEN"),
        ("https://evil.example", "NAVA_TOKEN", "evil.example is not this machine; list https://evil.example"),
        ("http://localhost.evil.example", "NAVA_TOKEN", "is not this machine"),
        ("http://127.0.0.1.evil.example:80/", "NAVA_TOKEN", "is not this machine"),
    ):
        with pytest.raises(RuntimeError, match=message):
            connect(url, variable)
    monkeypatch.setenv("NAVA_SERVERS", "https://gpu.example:8124, https://other.example/")
    assert service_module.connected("https://gpu.example:8124/", "NAVA_TOKEN").token == TOKEN
    assert service_module.connected("https://other.example", "NAVA_TOKEN").url == "https://other.example"
    with pytest.raises(RuntimeError, match="is not this machine"):
        connect("https://gpu.example:9999", "NAVA_TOKEN")


def test_a_redirect_is_not_followed(pack, monkeypatch):
    """The token would go with it."""

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        seen: ClassVar[list[str]] = []

        def do_GET(self):
            self.seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/stolen")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NAVA_TOKEN", TOKEN)
    try:
        with pytest.raises(RuntimeError, match="status 302"):
            pack.NODE_CLASS_MAPPINGS["NavaConnect"]().connect(
                f"http://127.0.0.1:{server.server_port}", "NAVA_TOKEN"
            )
    finally:
        server.shutdown()
        server.server_close()
    assert Elsewhere.seen == ["/v1/models"]


def test_cancel_in_comfyui_cancels_the_job(pack, service, comfy):
    url, worker = service

    class Stopped(Exception):
        pass

    def stop() -> None:
        if worker.batches and "hold" in worker.batches[-1][0]:
            raise Stopped

    comfy.management.throw_exception_if_processing_interrupted = stop
    with pytest.raises(Stopped):
        run_workflow(pack, workflow(url, prompt="hold on."))
    wait_until(lambda: worker.dropped, "the job is dropped")


def test_the_pack_imports_nothing_but_what_comfyui_has():
    """It is copied into an installation that does not know this project."""
    allowed = set(sys.stdlib_module_names) | {"av", "numpy", "torch", "PIL", "folder_paths", "comfy"}
    for path in FOLDER.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and not words[1].startswith("."):
                assert words[1].split(".")[0] in allowed, f"{path.name}: {line}"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_workflow_through_a_real_service(pack, comfy, monkeypatch, tmp_path, tmp_path_factory):
    """On a small random model: the clip in ComfyUI's output folder is that of the service."""
    made = shared_model(tmp_path_factory.getbasetemp())
    process = serve(
        tmp_path, made, str(tmp_path_factory.mktemp("r")), "--adapter", f"look={made / 'adapter'}"
    )
    try:
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        url = f"http://127.0.0.1:{PORT}"
        samples = read_media(made / "voice.wav", want_video=False).waveform
        assert samples is not None
        voice = {"waveform": torch.from_numpy(samples.reshape(1, 1, -1)), "sample_rate": RATE}
        steps = workflow(url, prompt="Says <S>zero<E>.", seed=4, seconds=1.0)
        answers = run_workflow(pack, steps | stub_inputs(steps, pack, voice, monkeypatch))
        clip = read_media(comfy.out / "nava" / "clip_00001_.mp4")
        assert clip.frames is not None and clip.frames.shape == (25, 64, 64, 3)
        decoded = pack.NODE_CLASS_MAPPINGS["NavaDecode"]().decode(answers["2"][0])
        assert decoded[0].shape == (25, 64, 64, 3) and decoded[1]["waveform"].shape[-1] > RATE // 2
    finally:
        end(process)

"""The command that measures a GPU: its processes and their ends, its file, and its parts on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from model_cases import audio_stream, conditioning, debug_model, video_stream

from experiments.benchmarks import gpu_hour
from experiments.benchmarks.gpu_parts import correctness, kernels, steps, waits
from experiments.benchmarks.gpu_parts.__main__ import carry_out
from experiments.benchmarks.gpu_parts.catalog import PARTS, MeasuredPart
from experiments.benchmarks.gpu_parts.finding import Figures, NotHere, OutOfBounds
from experiments.benchmarks.gpu_parts.sizes import SIZES
from experiments.benchmarks.gpu_parts.tables import table

CPU = torch.device("cpu")
DEBUG = SIZES["debug"]
COMPILED = [name for name in PARTS if name.endswith("compiled")]
OK = {"status": "ok", "reason": "", "words": ["1 s"], "figures": {"step": {"s": 1}}, "seconds": 3.0}
SCRIPTS = {
    "ok": "record('ok')",
    "crash": "record('running'); os.kill(os.getpid(), signal.SIGSEGV)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "exit": "print('no driver', file=sys.stderr); sys.exit(3)",
    "slow": "record('running'); child = subprocess.Popen(['sleep', '60']); note(child.pid); time.sleep(60)",
}
PREAMBLE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def record(status):
    found = {"status": status, "reason": "", "words": ["half"], "figures": {"first": {"s": 2}}}
    (folder / "new").write_text(json.dumps(found))
    (folder / "new").rename(folder / "train.json")
def note(pid): Path(sys.argv[2]).write_text(str(pid))
"""


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Parts are carried out by one of SCRIPTS."""

    def use(name: str) -> Path:
        noted = tmp_path / "pid"
        script = [sys.executable, "-c", PREAMBLE + SCRIPTS[name]]
        monkeypatch.setattr(gpu_hour, "command_of", lambda *given: [*script, given[-1], str(noted)])
        return noted

    return use


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("ok", "ok", ""),
        ("crash", "failed", "ended by SIGSEGV: it said nothing"),
        ("killed", "failed", "killed by the system (signal 9), as where the host's memory is used up"),
        ("exit", "failed", "ended with exit code 3: no driver"),
    ],
)
def test_how_a_process_ends_is_its_parts_reason(scripted, name, status, reason):
    scripted(name)
    record = gpu_hour.run_part("train", "debug", "cpu", 30)
    assert (record["status"], record["reason"]) == (status, reason)
    assert record["figures"] == ({"first": {"s": 2}} if name in ("ok", "crash") else {})


def test_at_its_limit_a_part_ends_with_all_that_it_started(scripted, monkeypatch, capsys):
    """What it found is kept."""
    noted = scripted("slow")

    class Clock:  # jumps when the part has started what it starts
        sleep = time.sleep

        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + (1000 if noted.exists() and noted.read_text() else 0)

    monkeypatch.setattr(gpu_hour, "time", Clock)
    record = gpu_hour.run_part("train", "debug", "cpu", 500)
    assert record["status"] == "timed out" and record["reason"] == "not done after its limit of 500 s"
    assert record["figures"] == {"first": {"s": 2}} and capsys.readouterr().err == "  half\n"
    started = int(noted.read_text())
    assert not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def pretended(monkeypatch):
    """Parts that end as `ends` says, "ok" unless it does; the names of those that ran."""
    ran: list[str] = []
    ends: dict[str, str] = {}

    def run_part(name, size, device, limit_s):
        ran.append(name)
        return {**OK, "status": ends.get(name, "ok")}

    monkeypatch.setattr(gpu_hour, "run_part", run_part)
    return ran, ends


def test_the_same_command_measures_what_is_not_there(pretended, tmp_path, capsys):
    ran, ends = pretended
    file, few = tmp_path / "hour.json", ["--parts", "waits", "lora", "train"]
    command = ["--to", str(file), "--device", "cpu", "--size", "debug"]
    ends.update(lora="failed")
    assert gpu_hour.main([*command, *few]) == 1 and ran == ["train", "lora", "waits"]
    assert list(json.loads(file.read_text())["parts"]) == ["train", "lora", "waits"]
    ends.clear()
    ran.clear()
    assert gpu_hour.main([*command, *few]) == 0 and ran == ["lora"]
    ran.clear()
    assert gpu_hour.main(command) == 0 and set(ran) == PARTS.keys() - {"train", "lora", "waits"}
    ran.clear()
    assert gpu_hour.main([*command, "--parts", "train", "--again"]) == 0 and ran == ["train"]
    found = json.loads(file.read_text())
    assert list(found["parts"]) == list(PARTS)
    assert found["date"] and found["hardware"] and found["size"] == "debug"
    assert "| train | a training step by the trainer | ok | 3 | 1 s |" in capsys.readouterr().out


def test_a_file_of_other_figures_is_left_alone(pretended, tmp_path, capsys):
    ran, _ = pretended
    file = tmp_path / "hour.json"
    command = ["--to", str(file), "--device", "cpu", "--size", "debug", "--parts", "train"]
    gpu_hour.main(command)
    other = json.loads(file.read_text()) | {"hardware": "another"}
    for text, line in (
        (json.dumps(other), "its hardware is another, here it is"),
        ("{", "not JSON"),
        ("{}", "not a file of this command"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit) as ended:
            gpu_hour.main([*command, "--again"])
        assert ended.value.code == 2 and file.read_text() == text
        errors = [row for row in capsys.readouterr().err.splitlines() if row.startswith("nava:")]
        assert len(errors) == 1 and line in errors[0]
    assert ran == ["train"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--device", "cuda"], "sees no GPU here"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--to", "."], "--to .: a folder"),
        (["--parts", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, line, pretended, tmp_path, capsys):
    if given[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        gpu_hour.main(["--to", str(tmp_path / "hour.json"), *given])
    assert ended.value.code == 2 and line in capsys.readouterr().err
    assert pretended[0] == [] and not (tmp_path / "hour.json").exists()


def test_parts_beyond_the_ten_minutes_wait_for_the_next_command(pretended, tmp_path):
    file = tmp_path / "hour.json"
    found = {"size": "debug", "device": "cpu", "parts": {"lora": OK}}
    gpu_hour.measure_all(found, ["train", "lora"], file, gpu_hour.Deadline(time.monotonic()))
    assert pretended[0] == [] and found["parts"]["lora"] == OK  # asked for again: kept
    assert found["parts"]["train"]["status"] == "skipped"
    assert "the same command" in found["parts"]["train"]["reason"] and json.loads(file.read_text()) == found


def test_no_part_may_take_longer_than_what_is_left(monkeypatch, tmp_path):
    limits = []

    def run_part(name, size, device, limit_s):
        limits.append(limit_s)
        return dict(OK)

    monkeypatch.setattr(gpu_hour, "run_part", run_part)
    found = {"size": "debug", "device": "cpu", "parts": {}}
    for left in (50.0, 500.0):
        deadline = gpu_hour.Deadline(time.monotonic() + left)
        gpu_hour.measure_all(found, ["train"], tmp_path / "hour.json", deadline)
    assert limits[0] == pytest.approx(50, abs=1) and limits[1] == PARTS["train"].limit_s


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotHere("no Triton"), "skipped", "no Triton"),
        (OutOfBounds("too far"), "failed", "too far"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried 9 GiB"),
            "failed",
            "CUDA out of memory. Tried 9 GiB",
        ),
    ],
)
def test_what_a_part_raises_is_its_reason(error, status, reason, tmp_path, capsys):
    def measure(size, device):
        yield Figures("first", {"s": 2}, "2 s")
        raise error

    record = carry_out(MeasuredPart("", 1, measure), DEBUG, CPU, tmp_path / "part.json")
    assert record["status"] == status and record["reason"].endswith(reason)
    assert (
        record["figures"] == {"first": {"s": 2}}
        and json.loads((tmp_path / "part.json").read_text()) == record
    )


def raised(part: str) -> str:
    """Reason of a part that is out of its bounds."""
    with pytest.raises(OutOfBounds) as error:
        list(PARTS[part].measure(DEBUG, CPU))
    return str(error.value)


def test_a_weight_that_is_a_little_off_is_seen_in_fp32(monkeypatch):
    real, seen = correctness.answers, []

    def answers(model, given):
        seen.append(model)
        if len(seen) == 2:  # the one in fp32
            model.block_groups()[0][0].ffn[0].weight.data *= 1.001
        return real(model, given)

    monkeypatch.setattr(correctness, "answers", answers)
    assert raised("correctness").startswith("fp32: ")


def test_fp64_is_fp64(monkeypatch):
    """Norms, which the model takes in fp32 whatever its weights are in, and the answers."""
    seen = set()
    real = torch.nn.functional.layer_norm

    def layer_norm(x, *more, **others):
        seen.add(x.dtype)
        return real(x, *more, **others)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", layer_norm)
    model = debug_model().double()
    with correctness.fp64():
        velocity = model(video_stream(), audio_stream(), conditioning())
    assert seen == {torch.float64} == {answer.dtype for answer in velocity}


def test_gradients_that_are_missing_are_out_of_bounds():
    one = {"video": torch.ones(1), "audio": torch.ones(1), "gradient a": torch.ones(1)}
    with pytest.raises(OutOfBounds, match="answered on one side only: gradient a"):
        correctness.errors({name: one[name] for name in ("video", "audio")}, one)


def test_a_kernel_that_is_wrong_is_seen(monkeypatch):
    real = kernels.scaled_attention
    monkeypatch.setattr(kernels, "scaled_attention", lambda q, k, v, mask: real(q, k, v, mask) * 1.05)
    assert raised("attention").startswith(f"joint, {kernels.MODELS}: 0.05")


def test_a_value_read_in_a_step_is_seen(monkeypatch):
    real = waits.velocity_loss

    def reading(velocity, corrupted):
        sums = real(velocity, corrupted)
        sums.video.item()
        return sums

    monkeypatch.setattr(waits, "velocity_loss", reading)
    monkeypatch.setattr(waits, "_sampling_step", lambda size, device, solver: Counter())
    assert raised("waits").startswith("forward and backward: 1 waits, at most 0")


def test_warnings_of_torch_are_counted_by_their_place(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits.counting(torch.device("cuda")) as places:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    (place,) = places
    assert place.endswith("test_warnings_of_torch_are_counted_by_their_place") and places[place] == 2
    assert modes == ["default", "warn", "default"]


def test_memory_that_is_not_planned_is_out_of_bounds(monkeypatch):
    monkeypatch.setattr(steps, "peak_bytes_of", lambda work, device: 10 << 30)
    monkeypatch.setattr(steps, "PARTS", {"generate": steps.PARTS["generate"]})
    assert "generate: 10.0 GiB, " in raised("memory")


def test_what_does_not_fit_by_the_plan_is_not_begun():
    with pytest.raises(NotHere, match=r"nava_6b: the plan counts \d+.\d GiB for train, there are "):
        list(PARTS["train"].measure(SIZES["full"], CPU))


def check_figures(parts: dict) -> None:
    """What each part found at debug size."""
    for name in parts.keys() & {"train", "lora", "lora_int8", "generate"}:
        step = parts[name]["figures"]["step"]
        assert step["seconds"]["n"] == DEBUG.repeats and step["tflop"] > 0 < step["share_of_ceiling"]
        assert step["memory"]["measured_gib"] > 0
    for name in (name for name in parts if name.startswith("race")):
        (race,) = parts[name]["figures"].values()
        assert race["training"]["times_as_fast"]["rounds"] >= 11 and race["dtype"] == "bfloat16"
        assert race["compiled"] == (name in COMPILED)
    assert parts["waits"]["figures"]["forward and backward"]["count"] == 0
    assert {"fp32", "bf16"} == parts["correctness"]["figures"].keys()
    assert parts["attention"]["figures"]["joint, flash"]["error"] < 0.01


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parts_at_debug_size(tmp_path):
    """In one process; all of them, each in its own: below."""
    names = [name for name in PARTS if name not in (*COMPILED, "lora", "race_sound", "memory")]
    command = [sys.executable, "-m", "experiments.benchmarks.gpu_parts", *names, "--to", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    parts = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert {name: (part["status"], part["reason"]) for name, part in parts.items()} == dict.fromkeys(
        names, ("ok", "")
    )
    check_figures(parts)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_whole_command_at_debug_size(tmp_path, capsys, monkeypatch):
    """Every part in its own process, with time for a busy machine; then there is nothing left to do."""
    patient = {name: part._replace(limit_s=900) for name, part in PARTS.items()}
    monkeypatch.setattr(gpu_hour, "PARTS", patient)
    file = tmp_path / "hour.json"
    command = ["--to", str(file), "--device", "cpu", "--size", "debug", "--minutes", "60"]
    assert gpu_hour.main(command) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert {part["status"] for part in found["parts"].values()} == {"ok"}
    check_figures(found["parts"])
    assert found["parts"]["memory"]["figures"].keys() == steps.PARTS.keys()
    begin = time.monotonic()
    assert gpu_hour.main(command) == 0 and time.monotonic() - begin < 5
    assert json.loads(file.read_text())["parts"] == found["parts"]
    assert table(found) in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_command_takes_its_part_with_it_and_goes_on(tmp_path):
    """Nothing measures on unattended; the file has the parts before."""
    file = tmp_path / "hour.json"
    command = [sys.executable, "-m", "experiments.benchmarks.gpu_hour", "--to", str(file), "--device", "cpu"]
    command += ["--size", "debug", "--parts", "correctness", "memory"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not file.exists():
        time.sleep(0.2)
    time.sleep(2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running()]
    assert json.loads(file.read_text())["parts"].keys() == {"correctness"}
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert json.loads(file.read_text())["parts"].keys() == {"correctness", "memory"}


@pytest.mark.gpu
def test_a_step_of_sampling_waits_for_nothing_on_a_gpu():
    found = {finding.name: finding for finding in waits.waits(DEBUG, torch.device("cuda"))}
    assert found["euler step"].figures["count"] == 0 and found["training step"].figures["count"] <= 3

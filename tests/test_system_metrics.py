"""Samples of the machine while a stage runs."""

import sys
import time
import types

import pytest

from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.runs import system
from experiments.runs.spool import SpooledRun
from experiments.runs.system import gpu_reader, system_metrics
from experiments.runs.tracker import RunStart, SpoolTracker

NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/disk_available_megabytes",
    "system/process_tree_memory_megabytes",
}


def points(tracker):
    return [
        (name, event["step"], value)
        for _, event in SpooledRun(tracker.folder).events()
        if event["kind"] == "metrics"
        for name, value in event["values"].items()
    ]


def begun(folder):
    tracker = SpoolTracker(folder)
    tracker.start(RunStart(name="stage"))
    return tracker


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_samples_have_mlflows_names_and_plausible_values(tmp_path):
    tracker = begun(tmp_path / "run")
    with system_metrics(tracker, 1.0):
        held = bytearray(80_000_000)
        time.sleep(2.4)
    found = points(tracker)
    assert {name for name, _, _ in found} == NAMES | {"peak_memory_gib"}
    by_name = {name: value for name, _, value in found}
    assert 0 <= by_name["system/cpu_utilization_percentage"] <= 100
    assert 0 < by_name["system/system_memory_usage_percentage"] <= 100
    assert by_name["system/process_tree_memory_megabytes"] > len(held) / 1e6
    assert by_name["peak_memory_gib"] * 2**30 >= len(held)
    assert by_name["peak_memory_gib"] * 2**30 >= by_name["system/process_tree_memory_megabytes"] * 0.99e6


def test_points_of_a_run_that_goes_on_come_after_those_before(tmp_path, monkeypatch):
    now = time.time()
    for later_s in (0.0, 60.0, 60.5, 3600.0):  # attempts, the third within the second of the one before
        monkeypatch.setattr("time.time", lambda later_s=later_s: now + later_s)
        with system_metrics(begun(tmp_path / "run"), 1.0):
            pass
    peaks = [step for name, step, _ in points(SpoolTracker(tmp_path / "run")) if name == "peak_memory_gib"]
    assert peaks == [0, 60, 3600]


def test_nothing_is_sampled_where_it_is_off(tmp_path):
    tracker = begun(tmp_path / "run")
    with system_metrics(tracker, 0.0):
        pass
    assert points(tracker) == []


def test_a_failing_sample_ends_the_sampling_and_not_the_stage(tmp_path, monkeypatch, caplog):
    def fails():
        raise OSError("no such device")

    monkeypatch.setattr(system.psutil, "virtual_memory", fails)
    tracker = begun(tmp_path / "run")
    with system_metrics(tracker, 1.0):
        time.sleep(1.3)
    assert "system metrics end here (no such device)" in caplog.text
    assert [name for name, _, _ in points(tracker)] == ["peak_memory_gib"]


def test_an_error_of_the_stage_passes_and_its_peak_is_kept(tmp_path):
    tracker = begun(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), system_metrics(tracker, 1.0):
        raise KeyboardInterrupt
    assert [name for name, _, _ in points(tracker)] == ["peak_memory_gib"]


def test_a_dear_sample_makes_the_next_one_wait(tmp_path, monkeypatch):
    waits, sampler = [], system._Sampler(begun(tmp_path / "run"), 1.0)

    def wait(seconds):
        waits.append(seconds)
        return len(waits) > 2

    def busy():
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        return {}

    monkeypatch.setattr(sampler._done, "wait", wait)
    monkeypatch.setattr(sampler, "_sample", busy)
    sampler._watch()
    assert waits[0] == 1.0 and all(wait >= 0.05 / system.SHARE for wait in waits[1:])


class NVMLError(Exception):
    pass


def nvml(busy):
    """Two GPUs of 100 MB; the second is a part of one, which has no utilization."""
    memory = types.SimpleNamespace(used=25e6, total=100e6)

    def utilization(index):
        if index:
            raise NVMLError("Not Supported")
        return types.SimpleNamespace(gpu=busy)

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda index: memory,
        nvmlDeviceGetUtilizationRates=utilization,
    )


def test_gpus_are_read_by_nvml(monkeypatch):
    assert gpu_reader()() == {}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(busy=70))
    assert gpu_reader()() == {
        "gpu_0_memory_usage_megabytes": 25.0,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_utilization_percentage": 70.0,
        "gpu_1_memory_usage_megabytes": 25.0,
        "gpu_1_memory_usage_percentage": 25.0,
    }


def test_a_stage_is_sampled(tmp_path, monkeypatch):
    from experiments import stages
    from experiments.job import StageJob

    monkeypatch.setattr(stages, "_work", lambda *_: None)
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    monkeypatch.setattr("experiments.runs.run.wait_for_end", lambda *_: None)
    layout = Layout(out=tmp_path / "out", reports=tmp_path / "reports")
    layout.codec.mkdir(parents=True)
    stages.run_stage("codec", StageJob(recipe=load_recipe("mini"), layout=layout, root=tmp_path))
    (run,) = layout.tracking.glob("*-codec-*")
    assert {"peak_memory_gib", "stage_seconds"} <= {name for name, _, _ in points(SpoolTracker(run))}

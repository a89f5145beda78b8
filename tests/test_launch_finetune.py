"""Launched fine-tunings reach `nava finetune` as they are asked for, and go on after a preemption."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
from pathlib import Path

import pytest
from align_world import write_world as write_alignable
from hypothesis import example, given, settings
from launch_world import free_port, preempted, requeued, write_world
from test_finetune_command import clips as training_clips
from test_launch import HOSTILE, IMAGE, logs, of_job, of_script

from experiments.cli import main
from experiments.commands import finetune as finetune_command
from experiments.jobs import kubernetes, node, slurm
from experiments.jobs.request import RENDEZVOUS_PORT, Finetuning, Request
from experiments.jobs.slurm import SlurmOptions


@settings(max_examples=10, deadline=None)
@given(recipe=HOSTILE, clips=HOSTILE.filter(bool), model=HOSTILE, to=HOSTILE, setting=HOSTILE)
@example(recipe="a", clips="$(x)", model="b c", to="'", setting="x=$$")
def test_a_fine_tuning_is_the_same_line_under_all_launchers(recipe, clips, model, to, setting) -> None:
    asked = Finetuning(clips=clips, model=model, to=to, full=True)
    request = Request(recipe=recipe, settings=(setting,), finetune=asked)
    _, command = of_job(kubernetes.render(request, IMAGE))
    assert of_script(node.render(request)) == of_script(slurm.render(request, SlurmOptions())) == command
    assert command[:4] == ["nava", "finetune", recipe, f"--clips={clips}"] and f"--set={setting}" in command
    assert [f"--model={model}" in command, f"--to={to}" in command] == [bool(model), bool(to)]
    assert "--full" in command and not any(part.startswith(("--stage", "--from")) for part in command)


def test_what_is_launched_is_what_the_command_takes(monkeypatch) -> None:
    """Every option of the line reaches `nava finetune` by its name."""
    taken = {}
    asked = Finetuning(clips="c", model="m", codec="k", to="t", lora=True)
    request = Request(recipe="nava_6b", nodes=2, gpus_per_node=4, out="o", settings=("a=b",), finetune=asked)
    monkeypatch.setattr(finetune_command, "finetune", kept_by(taken, finetune_command.finetune))
    main([*request.arguments()[1:], "--rdzv=h:29500"])
    given = {
        "recipe": "nava_6b",
        "clips": "c",
        "model": "m",
        "codec": Path("k"),
        "to": Path("t"),
        "lora": True,
    }
    given |= {"nproc": 4, "nnodes": 2, "max_restarts": 3, "settings": ("a=b",), "out": Path("o")}
    assert given | {"rdzv": "h:29500"} == {name: taken[name] for name in (*given, "rdzv")}


def kept_by(taken: dict, function):
    """The function's signature, whose arguments are kept and do nothing."""

    @functools.wraps(function)
    def keep(*arguments, **options):
        taken.update(inspect.signature(function).bind(*arguments, **options).arguments)

    return keep


def test_a_fine_tuning_has_a_job_of_its_own_name_and_meets() -> None:
    request = Request(recipe="nava_6b", nodes=2, finetune=Finetuning(clips="c"))
    batch = slurm.render(request, SlurmOptions())
    assert "#SBATCH --job-name=nava-6b-finetune\n" in batch and "#SBATCH --requeue" in batch
    assert of_script(batch) == [*request.arguments(), "--rdzv="]
    job, _ = of_job(kubernetes.render(request, IMAGE))
    assert job["metadata"]["generateName"] == "nava-6b-finetune-" and job["spec"]["trainer"]["numNodes"] == 2


def test_a_dry_run_looks_for_what_a_fine_tuning_names(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    named = ["--finetune.clips", "mine", "--finetune.model", "base", "--finetune.codec", "codec"]
    named += [
        "--set",
        "finetune.base=latents",
        "--set",
        "finetune.prompts=p.jsonl",
        "--workdir",
        str(tmp_path),
    ]
    asked = ["launch", "slurm", "mini", "--gpus-per-node", "2", "--cpus-per-task", "4", *named, "--dry-run"]
    assert main(asked) == 1
    told = capsys.readouterr()
    assert f"nava finetune mini --clips={named[1]}" in told.out and not list(tmp_path.iterdir())
    assert [line.split(": ")[1] for line in told.err.splitlines()] == [
        "--finetune.clips",
        "--finetune.model",
        "--finetune.codec",
        "finetune.base",
        "finetune.prompts",
    ]
    for name in ("mine/a.mp4", "mine/a.txt", "base/config.json", "codec/config.json", "p.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A man.")
    (tmp_path / "latents" / "clips").mkdir(parents=True)
    (tmp_path / "latents" / "clips" / "manifest.json").write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # names are those of --workdir, in which the ranks start
    assert main(asked) == 0 and not capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*asked, "--nodes", "3"])
    assert "does not split over 6" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_a_preempted_fine_tuning_requeues_and_goes_on(tmp_path: Path) -> None:
    """Two nodes of one rank each: the first encodes the clips, both train, stop and go on."""
    environment = write_world(tmp_path) | {"SLURM_NNODES": "2"}
    tuned = write_alignable(tmp_path / "world")
    shutil.copy(tuned / "base" / "ema.safetensors", tuned / "base" / "model.safetensors")
    fast = ("steps=60", "global_batch_size=2", "mixed_precision=fp32", "log_every=1", "clips_every=0")
    asked = Finetuning(
        clips=str(training_clips(tmp_path / "set", count=4)),
        model=str(tuned / "base"),
        codec=str(tuned / "codec"),
        to=str(tmp_path / "voice"),
    )
    request = Request(
        recipe="mini",
        nodes=2,
        gpus_per_node=1,
        settings=tuple(f"finetune.{one}" for one in (*fast, "base_share=0", "validate_every=0")),
        finetune=asked,
    )
    batch, voice = tmp_path / "job.sbatch", tmp_path / "voice"
    metrics = voice / "metrics.jsonl"
    batch.write_text(slurm.render(request, SlurmOptions()).replace(f":{RENDEZVOUS_PORT}", f":{free_port()}"))
    assert preempted(batch, metrics, environment, 250) == 130, logs(tmp_path)
    stopped = json.loads((voice / "state.json").read_text())
    assert stopped["status"] == "interrupted" and 0 < stopped["step"] < 60
    assert (tmp_path / "calls").read_text().splitlines()[1:] == ["scontrol requeue 7"]
    assert requeued(batch, environment) == 0, logs(tmp_path)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 61)) and (voice / "adapter").is_dir()
    assert "encoded before" in (tmp_path / "calls.0").read_text()

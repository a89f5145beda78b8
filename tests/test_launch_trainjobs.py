"""`nava launch kubernetes` with a `kubectl` that keeps TrainJobs in a file: none that runs is changed, and no
call ends well without having started one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main
from experiments.jobs.kubernetes import KubernetesOptions, render
from experiments.jobs.request import Finetuning, Request

KUBECTL = """#!{python} -S
import json, os, sys
place = {place!r}
with open(place + "/calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if "get" in sys.argv:
    if os.path.exists(place + "/forbidden"):
        sys.exit("Error from server (Forbidden): cannot list trainjobs")
    print(open(place + "/jobs.json").read())
elif sys.argv[1] == "create":
    print("trainjob created")
else:
    sys.exit("unchanged" if sys.argv[1] == "apply" else 3)
"""
ASKED = [
    "launch",
    "kubernetes",
    "nava_6b",
    "--image",
    "i",
    "--nodes",
    "16",
    "--claim",
    "c",
    "--mount",
    "/data",
]
ENDED = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
GOING = {"status": {"conditions": [{"type": "Complete", "status": "False"}]}}


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, place=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def there(cluster: Path, *jobs: dict[str, Any]) -> None:
    (cluster / "jobs.json").write_text(json.dumps({"items": jobs}))


def job(name: str, out: str = "/data/run", **more: Any) -> dict[str, Any]:
    request = Request(recipe="nava_6b", nodes=16, out=out)
    made = yaml.safe_load(render(request, KubernetesOptions(image="i", claim="c", mount="/data")))
    labels = made["metadata"].get("labels", {})
    return {**made, "metadata": {"name": name, "labels": labels}, **more}


def launched(*more: str) -> int:
    return main([*ASKED, "--out", "/data/run", *more])


def refused(capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        launched()
    assert ended.value.code == 2
    return capfd.readouterr().err


def test_each_call_creates_a_trainjob_of_its_own_once_the_one_before_has_ended(cluster, capfd):
    failed = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    there(cluster, job("nava-6b-aaaaa", **ENDED), job("nava-6b-bbbbb", **failed), job("nava-6b", "/data/b"))
    assert launched() == 0
    assert "trainjob created" in capfd.readouterr().out
    calls = (cluster / "calls").read_text().splitlines()
    assert calls[0].startswith("--namespace default get trainjobs.trainer.kubeflow.org --output json")
    assert calls[1:] == ["create -f out/launch/nava-6b.yaml"]
    made = yaml.safe_load((cluster / "out/launch/nava-6b.yaml").read_text())["metadata"]
    assert made["generateName"] == "nava-6b-" and "name" not in made  # `kubectl apply` refuses such a file


@pytest.mark.parametrize("state", [GOING, {}, {"status": {"conditions": [{"type": "Suspended"}]}}])
def test_one_that_has_not_ended_is_named_with_the_command_that_ends_it(cluster, capfd, state):
    there(cluster, job("nava-6b-aaaaa", **ENDED), job("nava-6b-bbbbb", **state))
    said = refused(capfd)
    assert "TrainJob nava-6b-bbbbb has not ended" in said and said.count("\n") == 1
    assert "`kubectl --namespace default delete trainjob nava-6b-bbbbb`" in said
    assert "create" not in (cluster / "calls").read_text() and not (cluster / "out").exists()


def test_one_of_an_earlier_version_is_known_by_its_name_and_command(cluster, capfd):
    old = job("nava-6b", **GOING)
    there(cluster, {**old, "metadata": {"name": "nava-6b"}})
    assert "TrainJob nava-6b has not ended" in refused(capfd)
    old["spec"]["trainer"]["command"][2] += " --set=a=b"  # a colleague's
    there(cluster, {**old, "metadata": {"name": "nava-6b"}})
    assert launched() == 0


def test_who_may_not_list_trainjobs_is_told_and_starts_one(cluster, capfd):
    (cluster / "forbidden").touch()
    assert launched() == 0
    told = capfd.readouterr()
    assert "note: not known whether" in told.err and "Forbidden" in told.err and "created" in told.out


def test_a_dry_run_asks_nobody(cluster, capfd):
    assert launched("--dry-run") == 0
    assert "generateName: nava-6b-" in capfd.readouterr().out and not (cluster / "calls").exists()


def test_what_is_trained_into_is_one_folder_or_another() -> None:
    def place(claim: str = "c", clips: str = "", to: str = "", **changes: Any) -> str:
        request = Request(recipe="a", finetune=Finetuning(clips=clips, to=to), **changes)
        options = KubernetesOptions(image="i", claim=claim, mount="/d" if claim else "")
        return (
            yaml.safe_load(render(request, options))["metadata"].get("labels", {}).get("nava.dev/place", "")
        )

    assert place(out="/d/run") == place(out="run", workdir="/d") == place(out="/d/run", settings=("a=b",))
    assert place(out="/d/run", clips="x") == place(out="/d/o", clips="y", to="/d/run/finetune")
    others = [
        place(out="/d/run"),
        place(out="/d/b"),
        place(out="/d/run", clips="x"),
        place("c2", out="/d/run"),
    ]
    assert len({*others, ""}) == 5
    assert not place("", out="out") and place("", out="/d/run")


def test_a_long_name_leaves_room_for_what_pods_are_called() -> None:
    made = yaml.safe_load(render(Request(recipe="a" * 33 + "_bc"), KubernetesOptions(image="i")))
    assert made["metadata"]["generateName"] == f"{'a' * 33}-"
    made = yaml.safe_load(render(Request(recipe="b" * 80), KubernetesOptions(image="i")))
    # JobSet's node-0-0 and five characters of the server's at each of two ends
    assert len(made["metadata"]["generateName"] + "xxxxx" + "-node-0-100-xxxxx") <= 63

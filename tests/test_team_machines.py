"""A team's two machines: one DVC remote, one MLflow with login on PostgreSQL and an S3-like store.

The pipeline at debug size runs for minutes, so these tests are slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_repository import (
    change_params,
    commit,
    end_senders,
    git,
    pipeline_repository,
    python,
    state_of,
)
from services import TeamServer, team_server

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(900)]

LAST = "generate"  # the clips of the pretrained model
STAGES = (
    "corpus",
    "curate",
    "codec",
    "encode",
    "pretrain_stage1",
    "pretrain_stage2",
    "pretrain_stage3",
    LAST,
)
TRACES = """
import json, sys
from pathlib import Path
from experiments.layout import Layout
from experiments.runs.lineage import trace
print(json.dumps({target: trace(target, Layout(), Path()) for target in sys.argv[1:]}))
"""
RUNS = """
import json
from pathlib import Path
from mlflow import MlflowClient
from experiments.runs.store_uri import connection_uri
client = MlflowClient(connection_uri(Path()))
experiment = client.get_experiment_by_name("nava")
found = {}
for run in client.search_runs([experiment.experiment_id], max_results=1000):
    found[run.data.tags["nava.run"]] = plain = run.to_dictionary()
    plain["inputs"]["dataset_inputs"].sort(key=json.dumps)  # the server gives them in any order
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Team:
    """first: where the pipeline ran; other: a clone of it after `dvc pull`."""

    server: TeamServer
    first: Path
    other: Path

    def python(self, where: Path, *arguments: str) -> str:
        return python(where, self.server.client_environment(), *arguments)

    def nava(self, where: Path, *arguments: str) -> str:
        return self.python(where, "-m", "experiments.cli", *arguments)

    def flush(self, where: Path) -> None:
        """Send everything, also where the sender at work takes long."""
        with suppress(AssertionError):
            self.nava(where, "tracking", "flush")
            return
        self.nava(where, "tracking", "flush")

    def runs(self, where: Path) -> dict[str, dict[str, Any]]:
        """Run key -> run, of the server that a machine is set to."""
        return json.loads(self.python(where, "-c", RUNS))

    def traces(self, where: Path, targets: list[str]) -> dict[str, dict[str, Any]]:
        return json.loads(self.python(where, "-c", TRACES, *targets))

    def clips(self) -> list[str]:
        return sorted(str(path.relative_to(self.first)) for path in self.first.glob("out/generated/*/*.mp4"))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    first, other = folder / "first", folder / "elsewhere" / "clone of ours"
    with team_server(folder) as server:
        team = Team(server, pipeline_repository(first), other)
        try:
            team.python(first, "-m", "dvc", "remote", "add", "-d", "team", str(folder / "remote"))
            team.python(first, "-m", "dvc", "repro", LAST)
            team.flush(first)
            commit(first, "made")
            team.python(first, "-m", "dvc", "push")
            git(folder, "clone", "-q", str(first), str(other))
            # what has not been made yet is no output to pull
            team.python(other, "-m", "dvc", "pull", "--with-deps", LAST)
            yield team
        finally:
            end_senders(folder)


def stages_of(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Of the runs below those of `dvc repro`."""
    tags = [run["data"]["tags"] for run in runs.values()]
    return sorted(found["nava.stage"] for found in tags if "mlflow.parentRunId" in found)


def test_every_run_is_on_the_server_with_its_numbers_and_files(team):
    runs = team.runs(team.first)
    assert stages_of(runs) == sorted(STAGES)
    assert {run["info"]["status"] for run in runs.values()} == {"FINISHED"}
    assert all(run["info"]["artifact_uri"].startswith("mlflow-artifacts:") for run in runs.values())
    trained = next(run for run in runs.values() if run["data"]["tags"].get("nava.stage") == "pretrain_stage3")
    assert trained["data"]["metrics"] and trained["data"]["params"]


def test_the_lineage_of_any_clip_is_the_same_tree(team):
    targets = [*team.clips(), "out/pretrain/stage3/model", "out/latents", "out/corpus"]
    assert len(targets) > 10
    here, there = team.traces(team.first, targets), team.traces(team.other, targets)
    for target in targets:
        assert there[target] == here[target], target
    stages = {run["stage"] for run in here[targets[0]]["runs"]}
    assert stages == set(STAGES) and all(run["git_commit"] for run in here[targets[0]]["runs"])
    asked = json.loads(team.nava(team.other, "lineage", targets[0], "--json"))
    assert asked == here[targets[0]]


def test_ui_names_the_server_in_both_and_both_see_the_same_runs(team):
    said = {team.nava(where, "ui") for where in (team.first, team.other)}
    [line] = said
    assert line.startswith(f"the runs are on a server: {team.server.server.url}/#/experiments/")
    assert team.server.login.password not in "".join(said)
    assert team.runs(team.first) == team.runs(team.other)


def test_a_change_of_stage_3_trains_stage_3_alone(team):
    before = team.runs(team.other)
    kept = {name: state_of(team.other / "out/pretrain" / name) for name in ("stage1", "stage2")}
    assert all(kept.values())
    change_params(team.other, "pretrain", "stages", "stage3", "steps", value=6)
    said = team.python(team.other, "-m", "dvc", "repro", LAST)
    team.flush(team.other)
    assert {name: state_of(team.other / "out/pretrain" / name) for name in kept} == kept, said
    after = team.runs(team.other)
    new = {key: run for key, run in after.items() if key not in before}
    assert stages_of(new) == sorted(["pretrain_stage3", LAST])
    assert {key: after[key] for key in before} == before
    clip = team.traces(team.other, team.clips()[:1])[team.clips()[0]]
    makers = {run["stage"]: run["run"] for run in clip["runs"]}
    assert {key for stage, key in makers.items() if stage not in ("pretrain_stage3", LAST)} <= before.keys()
    made = {key for key, run in new.items() if "mlflow.parentRunId" in run["data"]["tags"]}
    assert {makers["pretrain_stage3"], makers[LAST]} == made and len(new) == len(made) + 1
    assert clip["runs"][0]["status"] == "FINISHED"
    assert team.runs(team.first) == after

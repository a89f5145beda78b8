"""`nava serve generate` before anything is started, and tokens for it."""

import json

import pytest
from video_model import shared_model

from experiments.cli import main
from experiments.commands.serve import tokens_add
from experiments.serving import limits_of
from experiments.video_options import VideoServing
from experiments.video_serving import checked, try_line
from orchestration.generation_service.limits import JobLimits
from orchestration.service.access import AccessToken, read_tokens
from orchestration.service.gate_paths import CANCEL, CONTENT, SCOPE_OF, VIDEO, is_work, route_of
from orchestration.service.limits import Limits, Refusal
from pretrain.generation.config import GenerateConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve, as it is imported


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shared_model(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--port", "0"], "--port 0"),
        (["--workers", "0"], "--workers: expected at least 1"),
        (["--gpus", "nan"], "--gpus: expected 0 or more"),
        (["--niceness", "40"], "--niceness: expected 0 to 19"),
        (["--limit", "quue=3"], "did you mean 'queue'"),
        (["--limit", "queue=0"], "limits.queue: expected more than 0"),
        (["--model", "gone"], "gone: no such folder"),
        (["--adapter", "look"], "expected NAME=FOLDER"),
        (["--adapter", "look=gone"], "gone"),
        (["--adapter", "a/b=gone"], "expected NAME=FOLDER"),
        (["--set", "generate.stps=3"], "generate.stps"),
        (["--token-file", "gone"], "--token-file gone: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, found, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = ["--model", str(made / "model")] if "--model" not in arguments else []
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "generate", *folders, "--codec", str(made / "codec"), *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and found in error and error.count("\n") == 1, error


def test_what_is_served(made, tmp_path):
    options = VideoServing(
        model=made / "model",
        codec=made / "codec",
        adapters=(f"look={made / 'adapter'}",),
        limits=("queue=7", "body_bytes=1000"),
        batch=3,
    )
    config = checked(options, GenerateConfig(seeds=(1, 2)), tmp_path, "local", False)
    assert config.app.offer.name == "model" and config.app.offer.adapters == ("look",)
    assert (config.app.offer.limits.queue, config.app.limits.body_bytes) == (7, 1000)
    assert config.served.config.batch_size == 3 and config.served.config.seeds == ()
    assert config.app.folder == (tmp_path / "videos").resolve()


def test_limits_of_requests_and_of_jobs_have_names_of_their_own():
    requests, jobs = limits_of(["requests=3", "queue=4"], Limits, JobLimits)
    assert (requests.requests, jobs.queue) == (3, 4)
    assert not set(vars(requests)) & set(vars(jobs))


def test_a_token_for_clips(tmp_path, capsys):
    tokens_add("web", ("generate",), out=tmp_path)
    (token,) = read_tokens(tmp_path / "service" / "tokens.json")
    assert token.may("generate") and token.may("") and not token.may("score") and not token.may("metrics")
    assert not AccessToken(name="a", sha256="0" * 64).may("generate")


def test_paths():
    assert route_of("/v1/videos/video_1a/content") == CONTENT and route_of("/v1/videos/x/cancel") == CANCEL
    assert route_of("/v1/videos/video_1a") == VIDEO and SCOPE_OF[VIDEO] == "generate"
    for path in (
        "/v1/videos/",
        "/v1/videos/a/b",
        "/v1/videos/%2e%2e",
        "/operator",
        VIDEO,
        "/v1/%73core",
        "//",
    ):
        assert route_of(path) == ""
    assert is_work("POST", "/v1/videos") and not is_work("GET", "/v1/videos") and is_work("GET", "/v1/score")


def test_refusals_in_openais_form():
    error = json.loads(Refusal(429, "token team: 3 jobs wait", "service", 9, "queue_full").content("openai"))
    assert error == {
        "error": {
            "message": "token team: 3 jobs wait",
            "type": "rate_limit_error",
            "code": "queue_full",
            "param": None,
        }
    }
    assert (
        json.loads(Refusal(422, "references[1]: bad").content("openai"))["error"]["param"] == "references[1]"
    )
    assert json.loads(Refusal(422, "steps: bad").content()) == {"reason": "steps: bad", "fault": "request"}


def test_the_line_to_try_has_the_token_of_the_shell():
    line = try_line("mini", "::1", 8124, "$(cat out/service/token)")
    assert "http://[::1]:8124/v1/videos" in line and "$(cat out/service/token)" in line

"""The video API through its front: scopes, paths, headers that pass, refusals in OpenAI's form."""

import json
import time

import pytest
from front_world import INNER, backend, exchange, front_of, request
from video_world import SMALL, FakeWorker, offer

from orchestration.generation_service.app import AppConfig, build_video_app
from orchestration.service.access import add_token, digest_of

pytestmark = [pytest.mark.security, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
JSON = "Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    tokens = {
        name: add_token(folder / "tokens.json", name, (name,)) for name in ("generate", "score", "metrics")
    }
    tokens["other"] = add_token(folder / "tokens.json", "other", ("generate",))
    config = AppConfig(offer=offer(), folder=folder / "videos", limits=SMALL, batch=1)
    app = build_video_app(config, digest_of(INNER), lambda: [FakeWorker()])
    with backend(app) as behind, front_of(behind, SMALL, folder, "openai") as (port, _):
        yield port, tokens, folder


def ask(world, path: str, token: str = "generate", body: bytes = b"", method: str = "GET", headers: str = ""):
    status, head, content = exchange(
        world[0], request(path, body, world[1].get(token, token), method, headers)
    )
    return status, head.decode().lower(), content


def create(world, token: str = "generate", key: str = "") -> dict:
    keyed = f"Idempotency-Key: {key}\r\n" if key else ""
    body = json.dumps({"prompt": "A ball."}).encode()
    status, _, content = ask(world, "/v1/videos", token, body, "POST", JSON + keyed)
    assert status == 200, content
    return json.loads(content)


def test_a_clip_through_the_front(world):
    job = create(world, key="k")
    assert create(world, key="k")["id"] == job["id"] and create(world, "other", "k")["id"] != job["id"]
    path = f"/v1/videos/{job['id']}"
    ends = time.monotonic() + 20
    while json.loads(ask(world, path)[2])["status"] != "completed":
        assert time.monotonic() < ends
        time.sleep(0.05)
    status, head, content = ask(world, f"{path}/content", headers="Range: bytes=0-4\r\n")
    assert (status, content) == (206, b"video") and "content-range: bytes 0-4/13" in head and "etag: " in head
    assert ask(world, path, "other")[0] == 404
    assert ask(world, path, method="DELETE")[0] == 200 and ask(world, path)[0] == 404


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/v1/videos", "", 401),
        ("/v1/videos", "x" * 43, 401),
        ("/v1/videos", "score", 403),
        ("/v1/videos/video_0/content", "metrics", 403),
        ("/metrics", "generate", 403),
        ("/metrics", "metrics", 200),
        ("/v1/models", "generate", 200),
        ("/openapi.json", "metrics", 200),
        ("/operator", "generate", 404),
        ("/%6fperator", "generate", 404),
        ("/%6detrics", "generate", 404),
        ("/v1/videos/../../operator", "generate", 404),
        ("/v1/videos/%2e%2e/metrics", "generate", 404),
        ("//operator", "generate", 404),
        ("/v1/score", "score", 404),
    ],
)
def test_who_reaches_what(world, path, token, status):
    found, _, content = ask(world, path, token)
    assert found == status, content
    if status != 200:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "code", "param"} and "\n" not in error["message"]


def test_limits_of_the_front_answer_in_openais_form_too(world):
    large = ask(world, "/v1/videos", body=b"x" * (SMALL.body_bytes + 1), method="POST", headers=JSON)
    assert large[0] == 413 and json.loads(large[2])["error"]["code"] == "too_large"
    many = ask(world, "/v1/videos", headers="".join(f"X-{n}: 1\r\n" for n in range(90)))
    assert many[0] == 431 and json.loads(many[2])["error"]["type"] == "invalid_request_error"


def test_no_id_is_in_the_audit(world):
    job = create(world)
    ask(world, f"/v1/videos/{job['id']}")
    audit = (world[2] / "audit.jsonl").read_text()
    assert job["id"] not in audit
    assert {json.loads(line)["path"] for line in audit.splitlines()} >= {"/v1/videos", "/v1/videos/{id}"}

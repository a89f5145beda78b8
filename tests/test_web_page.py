"""The page in a real browser: a prompt, clips of a small random model, their sound, scores, a vote."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from video_model import shared_model
from video_world import TOKEN, wait_until
from voting_browser import CHROMIUM, fits, opened, shoot

pytest.importorskip("gradio")

from web_world import desk_of, served, small_service

from experiments.web.server import page_app

pytest_plugins = ("voting_browser",)  # fixtures
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]
ROOT = Path(__file__).resolve().parents[1]
PROMPT = "A woman in a red coat says: <S>seven<E>."
WAIT_MS = 300_000  # a busy machine is slow, not wrong
BOX, VIDEOS = "#nava-prompt textarea", ".nava-slot video"
HEARD = "video => [video.ended, video.webkitAudioDecodedByteCount > 0, video.videoWidth > 0]"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shared_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def service(made, tmp_path_factory):
    with small_service(made, tmp_path_factory.mktemp("service") / "videos") as found:
        yield found


@pytest.fixture(scope="module")
def pages(service, tmp_path_factory):
    desk = desk_of(tmp_path_factory.mktemp("page"), _=service[0])
    with served(page_app(desk)) as url:
        yield url, desk
    desk.close()


@contextlib.contextmanager
def page_at(browser, url, **options):
    """The page, filled with the model's defaults; it may ask no other host."""
    with opened(browser, "about:blank", **options) as page:
        asked = set()
        page.on("request", lambda request: asked.add(request.url))
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.wait_for_selector(BOX)
        yield page
        hosts = {address.split("/")[2] for address in asked if not address.startswith(("data:", "blob:"))}
        assert hosts == {url.split("/")[2]}, hosts


def write(page, prompt=PROMPT, seeds="1", seconds="1", other="") -> None:
    page.fill(BOX, prompt)
    page.wait_for_selector(".nava-prompt")
    page.locator("#nava-seeds").locator("input, textarea").first.fill(seeds)
    number = page.locator("#nava-seconds input[type=number]")
    number.fill(seconds)
    number.press("Enter")
    if other:
        page.click("#nava-model-B input")
        page.get_by_role("option", name=other).click()


def make(page, count: int) -> None:
    page.click("#nava-make")
    page.locator(VIDEOS).nth(count - 1).wait_for()


def hear(page) -> None:
    """Both clips of the first seed, by the button."""
    page.locator("[data-nava-both]").first.click()
    page.wait_for_function("[...document.querySelectorAll('#nava-slot-0 video')].every(video => video.ended)")
    heard = page.locator("#nava-slot-0 video").evaluate_all(f"all => all.map({HEARD})")
    assert heard == [[True, True, True]] * 2, heard


def vote_on(page, folder: Path) -> None:
    """Sends the pairs to a vote, which `nava gsb serve` makes ready."""
    page.click("#nava-vote-send")
    command = page.locator("#nava-vote-message pre").inner_text()
    words = shlex.split(command)
    assert words[:3] == ["nava", "gsb", "serve"] and "small+look=" in command
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *words[1:], "--port", "0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_interruptible,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ctrl-C ends it" in line:
            break
    where = re.search(r"http://127\.0\.0\.1:\d+", said[-1])
    assert where, said
    wait_until(lambda: _answers(f"{where[0]}/healthz"), "the vote is served", 120)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0, said
    assert any("made ready, 1 cases of small, small+look" in line for line in said), said
    assert sum("/r/" in line for line in said) == 2, said


def _interruptible() -> None:
    """Also where the tests run in the background of a shell, which ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url).status_code == 200
    return False


def test_a_prompt_two_clips_and_a_vote(browser, pages, tmp_path):
    with page_at(browser, pages[0]) as page:
        page.fill(BOX, "A woman in a red coat says:\n<S>seven")
        page.wait_for_selector(".nava-wrong")
        assert page.inner_text(".nava-wrong") == "<S>"
        assert "close the span (line 2, column 1: … coat says: →<S>←seven)" in page.inner_text("#nava-check")
        shoot(page, "web_span")
        page.click("#nava-make")
        page.wait_for_selector("#nava-message .nava-bad")
        assert "without <E>" in page.inner_text("#nava-message")
        write(page, other="small+look")
        page.wait_for_selector(".nava-speech")
        assert page.inner_text(".nava-speech") == "seven"
        make(page, 2)
        hear(page)
        page.wait_for_selector("#nava-slot-0 .nava-scores dt")
        facts = page.inner_text("#nava-slot-0")
        assert "none: no mouth box" in facts and "none: no reference voice" in facts
        assert "Word error rate" in facts and "wer_pocketsphinx, by this page" in facts
        shoot(page, "web_light", full_page=True)
        vote_on(page, tmp_path)
        _check_downloads(page)


def _check_downloads(page) -> None:
    with page.expect_download() as loaded:
        page.get_by_role("link", name="lineage (JSON)").first.click()
    lineage = json.loads(Path(loaded.value.path()).read_text())
    job = lineage["job"]
    assert (job["prompt"], job["seed"], job["adapters"], job["model"]) == (PROMPT, 1, {}, "small")
    assert lineage["marks"]["checkpoint_id"] and lineage["marks"]["seed"] == "1"
    assert {one["reward"] for one in lineage["scores"]} >= {"wer_pocketsphinx", "sim_resemblyzer"}
    with page.expect_download() as loaded:
        page.get_by_role("link", name="mp4").first.click()
    assert Path(loaded.value.path()).read_bytes()[4:8] == b"ftyp"


def test_a_page_that_was_closed_comes_back_dark(browser, pages):
    with page_at(browser, pages[0], color_scheme="dark") as page:
        write(page, other="small+look")
        make(page, 2)
        page.reload()
        page.locator(VIDEOS).nth(1).wait_for()
        page.wait_for_selector("#nava-slot-0 .nava-scores dt")
        shoot(page, "web_dark", full_page=True)


def test_on_a_phone(browser, pages):
    phone = {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    }
    with page_at(browser, pages[0], **phone) as page:
        write(page)
        make(page, 1)
        page.wait_for_selector("#nava-slot-0 .nava-scores dt")
        assert fits(page)
        page.locator("#nava-slot-0").scroll_into_view_if_needed()
        shoot(page, "web_phone")


def test_a_voice_for_each_span_and_its_similarity(browser, pages, made):
    with page_at(browser, pages[0]) as page:
        write(page, "Two: <S>one<E> and <S>two<E>.")
        page.click("#nava-voices button")
        page.wait_for_selector("#nava-voice-2")
        assert page.locator("#nava-voice-3").count() == 0
        page.set_input_files("#nava-voice-1 input[type=file]", str(made / "voice.wav"))
        page.wait_for_selector("#nava-voice-1 [aria-label*=Play], #nava-voice-1 .waveform-container")
        make(page, 1)
        page.wait_for_selector("#nava-slot-0 .nava-scores dt")
        assert "none: no reference voice" not in page.inner_text("#nava-slot-0")


def test_waiting_cancelling_and_the_history(browser, pages, service):
    worker = service[1]
    with page_at(browser, pages[0]) as page:
        worker.hold = True
        try:
            write(page, "A ball that nobody waits for.", seeds="1 2")
            page.click("#nava-make")
            page.wait_for_function("/is made|waits/.test(document.querySelector('#nava-progress').innerText)")
            assert "0 of 2 clips made" in page.inner_text("#nava-progress")
            shoot(page, "web_waiting")
            page.click("#nava-cancel")
            page.locator(".nava-empty").filter(has_text="cancelled").nth(1).wait_for()
        finally:
            worker.hold = False
        page.get_by_role("tab", name="History").click()
        row = page.get_by_role("gridcell").filter(has_text="A ball that nobody waits for.").first
        row.click()
        page.wait_for_selector("#nava-chosen")
        assert "cancelled" in page.inner_text("#nava-chosen")
        shoot(page, "web_history")
        page.click("#nava-delete")
        page.click("#nava-really")
        wait_until(lambda: row.count() == 0 or page.locator("#nava-chosen").count() == 0, "forgotten")


def test_refusals_and_a_service_that_is_away_are_one_line(browser, pages, tmp_path, service):
    with page_at(browser, pages[0]) as page:
        write(page)
        page.locator("#nava-size").locator("input, textarea").first.fill("65x64")
        page.wait_for_selector("#nava-message .nava-bad")
        assert "would be refused: width: must be a multiple of 32 pixels, got 65" in page.inner_text(
            "#nava-message"
        )
        page.click("#nava-make")
        page.wait_for_function("!/would be/.test(document.querySelector('#nava-message').innerText)")
        assert page.inner_text("#nava-message").count("\n") == 0
    desk = desk_of(tmp_path, A=service[0], gone="http://127.0.0.1:9")
    with served(page_app(desk)) as url, page_at(browser, url) as page:
        page.wait_for_selector("#nava-message .nava-bad")
        assert re.search(
            r"gone: http://127.0.0.1:9: .*check that the service is up", page.inner_text("#nava-message")
        )
        write(page, other="A.small+look")
        make(page, 2)
    desk.close()


def test_a_login_guards_page_and_clips(browser, service, tmp_path):
    desk = desk_of(tmp_path, _=service[0])
    clip = tmp_path / "web" / "clips" / "video_0.mp4"
    clip.write_bytes(b"secret")
    (tmp_path / "web" / "asked" / "video_0.json").write_text("{}")
    with served(page_app(desk, "a password")) as url, opened(browser, url) as page:
        assert page.request.get(f"{url}/gradio_api/file={clip}").status == 401
        page.set_default_timeout(WAIT_MS)
        for password in ("wrong password", "a password"):
            assert not page.is_visible(BOX)
            page.locator("input").first.fill("nava")
            page.locator("input[type=password]").fill(password)
            with page.expect_response(lambda answer: answer.url.endswith("/login")) as answered:
                page.get_by_role("button", name="Login").click()
            assert answered.value.ok == (password == "a password")
        page.wait_for_selector(BOX)
        assert page.request.get(f"{url}/gradio_api/file={clip}").body() == b"secret"
        for hidden in (tmp_path / "web" / "asked" / "video_0.json", ROOT / "README.md", Path("/etc/passwd")):
            assert page.request.get(f"{url}/gradio_api/file={hidden}").status in (403, 404)
    desk.close()


@pytest.mark.slow
def test_the_commands_themselves(browser, made, tmp_path):
    """`nava serve generate` on Ray, `nava web` over it."""
    import tempfile

    from test_video_ray import PORT, end, serve

    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as ray:
        service = serve(tmp_path, made, ray, "--adapter", f"look={made / 'adapter'}", "--name", "small")
        command = [sys.executable, "-m", "experiments.cli", "web", f"http://127.0.0.1:{PORT}", "--port", "0"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
            "NAVA_API_TOKEN": TOKEN,
        }
        page_process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_interruptible,
        )
        try:
            assert page_process.stdout is not None
            found = re.search(r"page at (\S+);", page_process.stdout.readline())
            assert found
            with page_at(browser, found[1]) as page:
                page.fill(BOX, "A woman says: <S>seven")
                page.wait_for_selector(".nava-wrong")
                write(page, other="small+look")
                make(page, 2)
                hear(page)
                vote_on(page, tmp_path)
        finally:
            page_process.send_signal(signal.SIGINT)
            assert page_process.wait(300) == 0
            end(service)

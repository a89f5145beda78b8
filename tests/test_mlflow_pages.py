"""MLflow's own pages in a real browser: what a team sees of its runs and models.

Screenshots are kept in the folder NAVA_SCREENSHOTS, if that is set.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_team import BETTER, WORSE, write_team

from experiments.runs import run as runs
from experiments.runs import sender as tracking_send
from experiments.runs.invocation import INVOCATION

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]
LISTED = ("wer_pocketsphinx_judge", "sync_judge", "sim_resemblyzer", "simulated_gsb_overall")
NAMES = "[role=gridcell][col-id='attributes.`Run Name`']"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of `nava ui` for the runs of a team, as it prints it."""
    folder = tmp_path_factory.mktemp("team")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ensure_sender", lambda spool, root: None)
        for name in (INVOCATION, "DVC_STAGE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setattr(tracking_send, "_store", None)
        write_team(folder, {"demo mini": WORSE, "align mini nft": BETTER})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "experiments.cli", "ui", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = folder / "ui.log"
    with log.open("wb") as errors:
        ui = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert ui.stdout is not None
    line = ui.stdout.readline()
    assert line.startswith(f"http://127.0.0.1:{port}/#/experiments/"), log.read_text()
    yield line.split()[0]
    ui.send_signal(signal.SIGTERM)
    ui.wait(60)


@pytest.fixture
def page(address):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page(viewport={"width": 1900, "height": 1000})
        found.set_default_timeout(WAIT_MS)
        found.goto(address)
        found.wait_for_selector(f"{NAMES} >> text=demo mini")
        yield found
        browser.close()


def shoot(page, name: str) -> None:
    if folder := os.environ.get("NAVA_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def rows(page) -> list[str]:
    found = page.locator(NAMES).all_inner_texts()
    return [text.splitlines()[-1] for text in found]


def cell(page, row: int, metric: str) -> str:
    return page.locator(f"[role=gridcell][col-id='metrics.`{metric}`']").nth(row).inner_text()


def until(condition, seconds: float = WAIT_MS / 1000) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_the_first_page_has_one_row_per_command_with_its_numbers(page):
    until(lambda: page.locator(f"[col-id='metrics.`{LISTED[-1]}`'][role=gridcell]").count() == 2)
    assert [name.rsplit(" ", 2)[0] for name in rows(page)] == ["align mini nft", "demo mini"]
    numbers = [BETTER.word_error, BETTER.sync, BETTER.similarity, BETTER.gsb]
    assert [float(cell(page, 0, metric)) for metric in LISTED] == numbers
    shoot(page, "runs")


@pytest.mark.parametrize(("metric", "clicks"), [("sync_judge", 1), ("wer_pocketsphinx_judge", 2)])
def test_sorting_puts_the_better_of_two_first(page, metric, clicks):
    for direction in ("false", "true")[:clicks]:  # descending, then ascending
        page.click(f"[role=columnheader][col-id='metrics.`{metric}`']")
        page.wait_for_url(f"**orderByAsc={direction}**")
    until(lambda: len(rows(page)) > 2)  # sorted by a number, MLflow lists the stages behind
    until(lambda: rows(page)[0].startswith("align mini nft"))
    assert rows(page)[1].startswith("demo mini")
    shoot(page, f"sorted_{metric}")


def test_charts_draw_the_curves_of_commands_together(page, address):
    page.goto(f"{address}&compareRunsMode=CHART")
    page.reload()
    page.wait_for_selector("text=pretrain/loss_video")
    lines = "e => e.map(x => x.querySelectorAll('path.js-line').length)"
    until(lambda: page.eval_on_selector_all(".js-plotly-plot .scatterlayer", lines)[:1] not in ([], [0], [1]))
    shoot(page, "curves")


def test_the_model_has_versions_aliases_and_metrics(page, address):
    server = address.split("#")[0]
    page.goto(f"{server}#/models/nava-mini")
    for text in ("Version 2", "Version 1", "pretrained", "aligned", "best"):
        page.wait_for_selector(f"text={text}")
    shoot(page, "model")
    page.click("text=Version 2")
    page.wait_for_selector("text=nava.checkpoint_id")
    shoot(page, "model_version")
    page.goto(f"{server}#/experiments/1/models")
    page.wait_for_selector("text=mini-aligned")
    page.wait_for_selector("text=evaluated/wer_pocketsphinx_judge")
    page.wait_for_selector(f"text={BETTER.word_error}")
    shoot(page, "models")


def test_a_command_says_what_came_out_and_links_its_stages(page):
    page.click(f"{NAMES} >> text=demo mini")
    page.wait_for_selector("text=Description")
    if page.locator("text=Show more").count():
        page.click("text=Show more")
    page.wait_for_selector("text=GSB of 12 simulated raters")
    shoot(page, "command")
    link = page.locator("table >> a:has-text('pretrain_stage1')").first
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_url("**/runs/*")
    opened.value.wait_for_selector("text=pretrain_stage1")
    opened.value.wait_for_selector("text=demo mini")  # the run above it

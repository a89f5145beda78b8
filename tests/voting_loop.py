"""A whole turn of the loop, by the commands: survey, votes, pairs, gsb_dpo, second survey. SIMULATED raters.

`python tests/voting_loop.py --out OUT --to loop` compares the pretrained with the aligned model of a finished
demo, votes on their clips through the real page in chromium, aligns the pretrained model on the votes, and
asks again on prompts that nothing was trained on. The program that plays the raters knows from the database
what it is shown, and answers by what the judges measured of the two clips, with tastes and noise
(finetune.gsb.simulated_raters). Started again it goes on where it stopped. loop.json has the numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from services import free_port
from sqlalchemy import Engine, select

from experiments.scoring.latents import score_store
from experiments.voting import store, tables
from experiments.voting.database import open_database, reading
from experiments.voting.export import read_survey
from finetune.gsb.simulated_raters import JUDGES, Rater, SimulatedRatersConfig, simulated_raters
from finetune.rollout_store import open_store
from pretrain.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
PANEL = SimulatedRatersConfig()
TOKEN = "owner-token-of-the-loop"
UNSCORABLE = 3.0  # judge units by which a clip loses that a judge could not score
UNSEEN = "pretrain_heldout_pairs.jsonl"  # words and voices that no model learned together
KEYS = {"left": "1", "tie": "2", "right": "3"}
WAIT_MS = 120_000
# a clip that the server has not sent whole, as on a busy machine, is played again
SAVED_OR_REPEATED = """before => document.getElementById('count').innerText !== before
    || !document.getElementById('heard-left').classList.contains('yes')"""


@dataclass(frozen=True)
class Turn:
    """Where a turn reads and writes. `out`: of the demo; `to`: everything of the turn."""

    out: Path
    to: Path

    def nava(self, *given: object) -> None:
        """A command of NAVA, in the folder of the turn."""
        command = [sys.executable, "-m", "experiments.cli", *map(str, given)]
        print("nava", *given[:6], "...", flush=True)
        subprocess.run(command, cwd=self.to, env=environment(), check=True)

    def rollouts(self, models: Mapping[str, Path], prompts: str, held_out: int, joined: str) -> Path:
        """One clip of each model and prompt, from equal noise, joined as one store."""
        for name, model in models.items():
            given = ["--model", model, "--codec", self.out / "codec", "--to", f"{joined}_{name}", "--mp4"]
            given += ["--prompts", self.out / "corpus" / "prompts" / prompts]
            sets = ["rollout.clips_per_prompt=2", f"align.stop.prompts={held_out}"]
            self.nava("rollout", "mini", *given, *(part for text in sets for part in ("--set", text)))
        if not (self.to / joined).is_dir():
            self.nava("gsb", "join", *(f"{name}={joined}_{name}" for name in models), "--to", joined)
        return self.to / joined

    def scores(self, joined: Path) -> dict[str, dict[str, float]]:
        """Clip -> what the judges of the simulated raters measured."""
        kept = joined.with_name(f"{joined.name}_judges.json")
        if not kept.is_file():
            out, names = self.out, [judge.name for judge in JUDGES]
            found = score_store(
                open_store(joined), names, out / "codec", out / "corpus", out / "syncnet", 64, 2
            )
            write_json(kept, found)
        return read_json(kept, "delete it")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}


@contextmanager
def serving(turn: Turn, name: str, joined: Path, raters: int, options: Sequence[str]) -> Iterator[list[str]]:
    """`nava gsb serve` with links for the raters, which are kept in links.json since they are shown once."""
    port, links = free_port(), turn.to / f"{name}_links.json"
    (turn.to / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "experiments.cli", "gsb", "serve", joined.name, "--votes", "votes.db"]
    command += ["--survey", name, "--simulated", "--port", str(port), "--token-file", "token", *options]
    command += [] if links.is_file() else ["--links", str(raters)]
    server = subprocess.Popen(command, cwd=turn.to, env=environment(), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found: list[str] = []
    try:
        for line in server.stdout:
            if "/r/" in line:
                found.append(line.strip().rpartition("/r/")[2])
            if "/owner" in line:
                break
        assert server.poll() is None, "the server ended"
        if not links.is_file():
            write_json(links, {"links": found})
        known = read_json(links, "delete it")["links"]
        yield [f"http://127.0.0.1:{port}/r/{secret}" for secret in known]
    finally:
        server.terminate()
        server.wait()


@dataclass(frozen=True)
class Showing:
    """The pair that a rater is shown, as only the owner's database knows it."""

    task: str
    kind: str
    clips: tuple[tuple[str, str], tuple[str, str]]  # left and right: (clip of the store, way it is spoilt)


def next_showing(engine: Engine, link: str) -> Showing | None:
    rater = store.find_rater(engine, link.rpartition("/")[2])
    assert rater is not None
    state = store.state_of(engine, rater)
    if state["task"] is None:
        return None
    clips, cases, tasks = tables.clips, tables.cases, tables.tasks
    with reading(engine) as connection:
        task = (
            connection.execute(select(tasks).where(tasks.c.token == state["task"]["token"])).mappings().one()
        )
        sides = []
        for side in ("left", "right"):
            query = select(cases.c.case_id, clips.c.model, clips.c.spoilt).join(cases)
            row = connection.execute(query.where(clips.c.id == task[f"{side}_clip"])).one()
            sides.append((f"{row.case_id}-{row.model}", row.spoilt))
    return Showing(task["token"], task["kind"], (sides[0], sides[1]))


def answers(
    showing: Showing, rater: Rater, scores: Mapping[str, Mapping[str, float]], rng: np.random.Generator
) -> list[str]:
    """An answer per question: the mean of what the judges say of it, weighed by taste, with noise."""
    spoilt = [bool(way) for _, way in showing.clips]
    if any(spoilt):
        return ["left" if spoilt[1] else "right"] * len(PANEL.axes)
    left, right = (scores[clip] for clip, _ in showing.clips)
    gaps = np.array([gap(left[judge.name], right[judge.name], judge.unit) for judge in JUDGES])
    found = []
    for axis in PANEL.axes:
        about = [place for place in PANEL.about(axis) if math.isfinite(gaps[place])]
        weights = np.array([rater.weights[place] for place in about])
        seen = float(weights @ gaps[about] / weights.sum()) if about else 0.0
        felt = seen + rater.side_bias + rater.noise * float(rng.standard_normal())
        found.append("tie" if abs(felt) < rater.tie_width else "left" if felt > 0 else "right")
    return found


def gap(left: float, right: float, unit: float) -> float:
    """In judge units, positive where the left clip is better; one that could not be scored loses."""
    known = math.isfinite(left), math.isfinite(right)
    if all(known) or not any(known):
        return (left - right) / unit
    return UNSCORABLE if known[0] else -UNSCORABLE


def vote_through(
    page: Any, engine: Engine, link: str, rater: Rater, scores: Mapping[str, Mapping[str, float]]
) -> int:
    """Votes on all pairs that are left, by the keys of the page; returns how many."""
    rng, count = np.random.default_rng(int(rater.user_id.rpartition("-")[2])), 0
    page.goto(link)
    while (showing := next_showing(engine, link)) is not None:
        page.wait_for_selector("#work:not([hidden])")
        page.keyboard.press("Space")
        for side in ("left", "right"):
            page.wait_for_selector(f"#heard-{side}.yes")
        page.wait_for_selector("fieldset:not(:disabled)")
        for answer in answers(showing, rater, scores, rng):
            page.keyboard.press(KEYS[answer])
        before = page.inner_text("#count")
        page.keyboard.press("Enter")
        page.wait_for_function(SAVED_OR_REPEATED, arg=before)
        count += page.inner_text("#count") != before
    page.wait_for_selector("#finished:not([hidden])")
    return count


def survey(turn: Turn, name: str, joined: Path, raters: int, options: Sequence[str]) -> dict[str, Any]:
    """The votes of all raters, exported; returns the results."""
    from playwright.sync_api import sync_playwright

    scores, people = turn.scores(joined), simulated_raters(PANEL)
    with serving(turn, name, joined, raters, options) as links, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        engine = open_database(str(turn.to / "votes.db"), make=False)
        for link, rater in zip(links, people, strict=False):
            page = browser.new_page(viewport={"width": 1100, "height": 900}, locale="en-GB")
            page.set_default_timeout(WAIT_MS)
            begun = time.monotonic()
            count = vote_through(page, engine, link, rater, scores)
            print(f"{name} {rater.user_id}: {count} pairs in {time.monotonic() - begun:.0f} s", flush=True)
            page.close()
        shoot(browser, links[0].rpartition("/r/")[0], turn.to, name)
        engine.dispose()
        browser.close()
    return read_survey(str(turn.to / "votes.db"), name)[1]


def shoot(browser: Any, url: str, folder: Path, name: str) -> None:
    """The owner's page, which shows the survey that was made last."""
    page = browser.new_page(viewport={"width": 1000, "height": 800}, locale="en-GB")
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{url}/owner#{TOKEN}")
    page.wait_for_selector("#intervals svg")
    page.screenshot(path=str(folder / f"{name}_owner.png"), full_page=True)
    page.close()


def judged(joined: Path, scores: Mapping[str, Mapping[str, float]], base: str) -> dict[str, Any]:
    """Mean difference of each model from `base`, prompt by prompt, with 95 % bootstrap intervals."""
    places = open_store(joined).places
    cases = sorted({row["case_id"] for row in places.values()})
    found: dict[str, Any] = {}
    for model in sorted({row["model"] for row in places.values()} - {base}):
        for judge in JUDGES:
            pairs = [[scores[f"{case}-{one}"][judge.name] for one in (model, base)] for case in cases]
            gaps = np.array([a - b for a, b in pairs if math.isfinite(a - b)])
            draws = np.random.default_rng(0).choice(gaps, (10_000, len(gaps))).mean(1)
            low, high = map(float, np.percentile(draws, (2.5, 97.5)))
            values = {"mean": float(gaps.mean()), "low": low, "high": high, "prompts": len(gaps)}
            found.setdefault(model, {})[judge.name] = values
    return found


def turn_of(turn: Turn, given: argparse.Namespace) -> dict[str, Any]:
    models = {
        "pretrained": turn.out / "pretrain" / "stage3" / "model",
        "aligned": turn.out / "align" / "model",
    }
    first = turn.rollouts(models, "align_train.jsonl", given.held_out, "first")
    options = ["--ours", "aligned", "--per-rater", str(given.pairs), "--shared", "0.1"]
    before = survey(turn, "first", first, given.raters, options)
    export = ["--survey", "votes.db", "--survey-name", "first", "--clips", "first", "--out", "pairs.jsonl"]
    turn.nava("gsb", "export", "first_votes.jsonl", *export)
    pairs = len((turn.to / "pairs.jsonl").read_text().splitlines())
    sets = ["align.sequence=[gsb_dpo]", f"align.gsb_dpo.rounds={given.rounds}"]
    sets += [f"align.gsb_dpo.pairs_per_round={pairs // 8 * 8}", f"align.stop.prompts={given.held_out}"]
    align = ["--model", models["pretrained"], "--codec", turn.out / "codec", "--to", "voted"]
    align += ["--prompts", turn.out / "corpus" / "prompts" / "align_train.jsonl", "--out", turn.out]
    align += ["--pairs", "pairs.jsonl", "--clips", "first"]
    turn.nava("align", "mini", *align, *(part for text in sets for part in ("--set", text)))
    lineage = [sys.executable, "-m", "experiments.cli", "lineage", "voted/model"]
    said = subprocess.run(lineage, cwd=turn.to, env=environment(), check=True, capture_output=True, text=True)
    (turn.to / "lineage.txt").write_text(said.stdout)
    models = {**models, "voted": turn.to / "voted" / "model"}
    second = turn.rollouts(models, given.unseen, 0, "second")
    options = ["--ours", "voted", "--per-rater", str(given.pairs), "--cases", str(given.cases)]
    after = survey(turn, "second", second, given.raters, options)
    export = ["--survey", "votes.db", "--survey-name", "second"]
    turn.nava("gsb", "export", "second_votes.jsonl", *export)
    return {
        "simulated": True,
        "first": before,
        "pairs": pairs,
        "second": after,
        "judges_first": judged(first, turn.scores(first), "pretrained"),
        "judges_second": judged(second, turn.scores(second), "pretrained"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="out/ of a finished `nava demo`")
    parser.add_argument("--to", type=Path, required=True, help="folder of the turn")
    parser.add_argument("--raters", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=24, help="of each rater, without repeats and checks")
    parser.add_argument("--rounds", type=int, default=10, help="of gsb_dpo")
    parser.add_argument("--held-out", type=int, default=16, help="training prompts for early stopping")
    parser.add_argument(
        "--unseen", default="pretrain_heldout_pairs.jsonl", help="prompts of the second survey"
    )
    parser.add_argument("--cases", type=int, default=0, help="of these prompts; 0 = all")
    given = parser.parse_args()
    turn = Turn(given.out.resolve(), given.to.resolve())
    turn.to.mkdir(parents=True, exist_ok=True)
    found = turn_of(turn, given)
    write_json(turn.to / "loop.json", found, indent=1)
    print(json.dumps({name: found[name] for name in ("pairs", "judges_first", "judges_second")}, indent=1))


if __name__ == "__main__":
    main()

"""Cases of words, prompts, votes and folders."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import soundfile
from case_world import BASE, Line, World, last_line, nava, near, said_of, scored, short, value_of

from pretrain.data.corpus.bank import BANK_FOLDER
from pretrain.media.write import write_wav

ZH = "今天天气很好我们去公园"
# file, what is said, what the server hears, its language, options, right word error rate
TYPOGRAPHY = "wer_typography__nfd.wav"
WORDS: tuple[tuple[str, str, str, str, str, float], ...] = (
    ("wer_no_spaces__zh_ok.wav", ZH, "今天天气很好，我们去公园。", "zh", "", 0.0),
    ("wer_no_spaces__zh_ok.wav", ZH, "今天天气很好，我们去花园。", "zh", "", 1 / 11),
    ("wer_marks__hindi_one_wrong.wav", "मैं हिन्दी सीख रहा हूँ", "मैं हिन्दी सिख रहा हूँ", "hi", "", 0.2),
    ("wer_typography__contraction_curly.wav", "I don’t think", "I don't think", "en", "", 0.0),
    (TYPOGRAPHY, "Un cafe\u0301 a\u0300 la cre\u0300me", "Un café à la crème", "fr", "", 0.0),
    (TYPOGRAPHY, "ex\u00adtra\u00adordinary", "extraordinary", "en", "", 0.0),
    (TYPOGRAPHY, "ＨＥＬＬＯ", "hello", "en", "", 0.0),
    (TYPOGRAPHY, "oﬃce", "office", "en", "", 0.0),
    (TYPOGRAPHY, "it costs 1,000", "it costs 1000", "en", "", 0.0),
    ("zh_traditional__zh_trad.wav", "今天天气很好", "今天天氣很好", "zh", "seed_tts_zh", 0.0),
)
STRICT = {  # file -> what the error says beside the line
    **{
        f"prompt_keys__{name}.jsonl": said
        for name, said in (
            ("dup_key", "prompt"),
            ("dup_prompt_text", "text"),
            ("lone_surrogate", ""),
            ("long_id", "data_id"),
            ("unknown_key", "spk_wav"),
        )
    },
    **{
        f"prompt_marks__{name}.jsonl": "<S>"
        for name in ("fullwidth_marks", "html_escaped", "lower_marks", "spaced_marks", "zwsp_span")
    },
}
VOTES = {  # file -> refused (True) or taken with a warning (False)
    "votes_blanks__case_space.jsonl": True,
    "votes_blanks__user_space.jsonl": True,
    "votes_blanks__dup_key.jsonl": True,
    "votes_blanks__user_case.jsonl": False,
    "votes_blanks__model_case.jsonl": False,
}


def text_lines(world: World) -> Iterator[Line]:
    yield from word_lines(world)
    for file, said in STRICT.items():
        done = nava("prompt", "check", world.cases / file)
        shown = next((line for line in said_of(done).splitlines() if f"{file}:1" in line), last_line(done))
        ok = done.returncode != 0 and f"{file}:1" in shown and said in shown
        yield Line(file, "prompt check", f"exit {done.returncode}: {short(shown)}", "an error at :1", ok)
    for file, refused in VOTES.items():
        done = nava("gsb", "stats", world.cases / file)
        marks = ("by case", "letter case", "upper and lower")
        warning = next(
            (line for line in said_of(done).splitlines() if any(mark in line for mark in marks)), ""
        )
        ok = done.returncode == 2 or (bool(warning) and not refused)
        right = "refused by line" if refused else "warned of, or refused"
        shown = warning or last_line(done)
        yield Line(file, "gsb stats", f"exit {done.returncode}: {short(shown)}", right, ok)
    yield from folder_lines(world)
    yield from silence_lines(world)


def word_lines(world: World) -> Iterator[Line]:
    """`nava score --rewards wer_endpoint` against a server that answers what the note says was heard."""
    for file, said, heard, language, scoring, right in WORDS:
        with answering(heard) as url:
            settings = [f"wer_endpoint.base_url={url}", "wer_endpoint.model=whisper-large-v3"]
            settings += [f"wer_endpoint.language={language}"] + (
                [f"wer_endpoint.scoring={scoring}"] if scoring else []
            )
            row = {"data_id": "a", "prompt": f"A man says: <S>{said}<E>.", "video": str(world.cases / file)}
            found = scored(world, [row], ["wer_endpoint"], settings)["a"]
        name = next(iter(found["scores"]), "wer_endpoint")
        line = near(file, "score", found, name, right, 1e-3)
        yield Line(f"{file} ({said})", line.way, line.measured, line.right, line.ok)


@contextmanager
def answering(text: str) -> Iterator[str]:
    """A transcription server that hears one text in everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"text": text}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def folder_lines(world: World) -> Iterator[Line]:
    """Other suffixes beside mp4: scored, or counted."""
    folder = world.scratch / "mixed"
    folder.mkdir()
    for suffix in ("mp4", "m4v", "avi", "ts", "m4a", "mp3", "txt"):
        shutil.copy(world.cases / BASE, folder / f"a_{suffix}.{suffix}")
    (folder / "linked").symlink_to(world.cases)
    out = world.scratch / "mixed.jsonl"
    done = nava("score", folder, "--rewards", "snr_estimate_db", "--out", out)
    rows = out.read_text().splitlines() if out.is_file() else []
    says = next((line for line in said_of(done).splitlines() if "left out" in line), "no word of the others")
    yield Line(
        "folder_left_out.md",
        "score",
        f"{len(rows)} rows; {short(says)}",
        "says how many are left out",
        "left out" in says,
    )


def silence_lines(world: World) -> Iterator[Line]:
    """0.3 s of a voice, alone and before 4.7 s of silence, beside the same voice's other words."""
    voice = world.scratch / "voice.wav"
    write_wav(voice, soundfile.read(BANK_FOLDER / "rms.flac", dtype="float32", frames=64_000)[0], 16_000)
    values = {}
    for name in ("rms_0.3.wav", "rms_0.3in5s.wav"):
        row = {
            "data_id": name,
            "prompt": "A man says: <S>seven<E>.",
            "video": str(world.cases / f"sim_silence__{name}"),
            "spk_wavs": [str(voice)],
        }
        values[name] = value_of(scored(world, [row], ["sim_resemblyzer"])[name], "sim_resemblyzer")
    alone, reason = values["rms_0.3.wav"]
    value, why = values["rms_0.3in5s.wav"]
    shown = why if value is None else f"{value:.3f}"
    ok = alone is not None and (bool(why) if value is None else abs(value - alone) < 0.03)
    right = f"{alone:.3f} ± 0.03 (without the silence), or a reason" if alone is not None else reason
    yield Line("sim_silence__rms_0.3in5s.wav", "score", f"sim_resemblyzer {shown}", right, ok)

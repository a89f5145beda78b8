"""Hostile files from seeds: rubrics, params, prompts, votes, manifests, model and codec folders, states,
media and archives."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from canary import MODULE

VOTE = {
    **{"user_id": "u1", "left_model": "ours", "right_model": "base"},
    **{"choice": "left", "ours_side": "left", "case_id": "c1"},
}
PROMPT = {"prompt": "A woman says <S>good morning<E>.", "data_id": "a", "num_frames": 25, "spk_wavs": [None]}
RUBRIC = {
    "items": {"snr_estimate_db": {"weight": 1.0, "normalise": "batch"}},
    "guardrails": {},
    "options": {},
}
PARAMS = {
    "recipe": "mini",
    "generate": {"fps": 24.0, "sampler": {"steps": 4}},
    "align": {"sequence": ["nft"]},
}
MANIFEST = {"data_id": "m", "video": "a.mp4", "prompt": "Rain.", "duration": 1.0, "fps": 24.0}
CODEC = {"kind": "linear", "codec_id": "0" * 16, "griffin_lim_iterations": 4, "text": {"width": 256}}
SET = {
    "format": "nava-latents-2",
    "codec_id": "x",
    "shards": {},
    "index_sha256": "0",
    "index_bytes": 1,
    "samples": 1,
}


def values(draw: random.Random, private: Path) -> Any:
    """A value that no field expects."""
    mark = private.parent / "of_others" / "code_ran"
    return draw.choice(
        [
            *(
                None,
                True,
                -1,
                0,
                10**9 + 1,
                2**63,
                2**64 + 1,
                10**30,
                1e308,
                float("nan"),
                float("inf"),
                -0.0,
            ),
            *("", " ", "\0", "\x1b[2J", "\u202egpj.exe", "\ud800", "a" * 100_000, "é" * 300, "{}", "null"),
            *("subprocess:Popen", "os:system", f"{MODULE}:Reward", f"{MODULE}.recipe", "rewards.plugins:os"),
            *("__import__('os').system('x')", "${HOME}", "{{7*7}}", "%s%n", "$(touch x)", "`touch x`"),
            *(
                f"{private}/secret.txt",
                "../private/secret.txt",
                "/etc/passwd",
                "/dev/zero",
                "/proc/self/environ",
            ),
            *(
                "concat:a|b",
                "file:///etc/passwd",
                "http://127.0.0.1:9/x",
                "pipe:0",
                "s3://b/k",
                "~/x",
                "data:,x",
            ),
            [f"touch {mark}"],
            {"args": ["touch", str(mark)]},
            {"$ref": "#"},
            [[]] * 1000,
            nested(draw.choice([5, 500, 5000])),
            {f"k{number}": number for number in range(2000)},
        ]
    )


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def changed(draw: random.Random, value: Any, private: Path) -> Any:
    """The value with something in it replaced, added or taken away."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.2:
        return values(draw, private)
    if isinstance(value, list):
        place = draw.randrange(len(value))
        return [*value[:place], changed(draw, value[place], private), *value[place + 1 :]]
    key = draw.choice(list(value))
    if (what := draw.random()) < 0.15:
        return {name: item for name, item in value.items() if name != key}
    if what < 0.3:
        key = values(draw, private)
        return {**value, key[:50] if isinstance(key, str) else "strange": values(draw, private)}
    return {**value, key: changed(draw, value[key], private)}


def as_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes with a cut, flips, a repetition, or another encoding."""
    if not content:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(64)))
    what = draw.randrange(7)
    place = draw.randrange(len(content))
    if what == 0:
        return content[:place]
    if what == 1:
        made = bytearray(content)
        for _ in range(draw.randrange(1, 9)):
            made[draw.randrange(len(made))] = draw.randrange(256)
        return bytes(made)
    if what == 2:
        return (
            content[:place]
            + draw.choice([b"\0", b"\xff\xfe", b"\x1b", b"9" * 5000, b"[" * 20_000])
            + content[place:]
        )
    if what == 3:
        return content.decode("latin-1").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))
    if what == 4:
        return content + content
    if what == 5:
        return content[:place] + content[draw.randrange(len(content)) :]
    return content


def document(draw: random.Random, base: Any, private: Path) -> bytes:
    for _ in range(draw.randrange(1, 4)):
        base = changed(draw, base, private)
    content = as_json(base)
    return damaged(draw, content) if draw.random() < 0.3 else content


def rows(draw: random.Random, base: Any, private: Path) -> bytes:
    lines = [document(draw, base, private) if draw.random() < 0.5 else as_json(base) for _ in range(3)]
    return b"\n".join(lines)


YAML = (
    "items: &a [*a]",
    "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nitems: [*c,*c,*c]",
    "items: !!python/object/apply:os.system ['touch MARK']",
    "items: !!python/name:subprocess.Popen",
    "!!python/module:MODULE",
    "items: {? [a]: 1}",
    "items: 2020-99-99",
    "items: {<<: [1, 2]}",
    "items: |\n  x\n bad",
    "%YAML 9.9\n---\nitems: {}",
    "items: {snr_estimate_db: {weight: 1:2:3}}",
    "{" * 3000,
    "--- a\n--- b",
)


def yaml_text(draw: random.Random, base: Any, private: Path) -> bytes:
    if draw.random() < 0.25:
        mark = str(private.parent / "of_others" / "code_ran")
        return draw.choice(YAML).replace("MARK", mark).replace("MODULE", MODULE).encode()
    return document(draw, base, private)


PLAYLISTS = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    '#EXTM3U\n#EXT-X-MAP:URI="{0}"\n#EXTINF:1,\n{0}\n',
    '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:1,\nfile:{0}\n',
    "ffconcat version 1.0\nfile '{0}'\n",
    "ffconcat version 1.0\nfile 'subfile,,start,0,end,0,,:{0}'\nduration 1\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "<?xml version='1.0'?><MPD><Period><BaseURL>{0}</BaseURL></Period></MPD>",
    "<asx><entry><ref href='{0}'/></entry></asx>",
    "[playlist]\nFile1={0}\n",
    ";FFMETADATA1\ntitle={0}\n",
    "RTSPtext\nrtsp://127.0.0.1:9/{0}",
)


def archive(draw: random.Random) -> bytes:
    """A zip or tar with members that lead elsewhere, or grow."""
    names = ["../../private/secret.txt", "/etc/x", "a/../../b", "config.json", "C:\\x", "a\0b", "link"]
    held = io.BytesIO()
    if draw.random() < 0.5:
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
            for name in draw.sample(names, 3):
                made.writestr(name, b"\0" * draw.choice([10, 10**6]))
    else:
        mode: Any = draw.choice(["w", "w:gz"])
        with tarfile.open(fileobj=held, mode=mode) as made:
            for name in draw.sample(names, 3):
                info = tarfile.TarInfo(name.replace("\0", ""))
                info.type, info.linkname = draw.choice(
                    [(tarfile.REGTYPE, ""), (tarfile.SYMTYPE, "/etc/passwd")]
                )
                made.addfile(info, io.BytesIO())
    return damaged(draw, held.getvalue()) if draw.random() < 0.5 else held.getvalue()


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def state(draw: random.Random, template: bytes, private: Path) -> bytes:
    """`.metadata` of a checkpoint: damaged, or with code."""
    mark = str(private.parent / "of_others" / "code_ran")
    what = draw.randrange(4)
    if what == 0:
        calls = (_Call(os.system, f"touch {mark}"), _Call(eval, f"open({mark!r}, 'w')"), _Call(exec, "1"))
        return pickle.dumps({"a": draw.choice(calls)}, protocol=draw.randrange(6))
    if what == 1:
        names = [
            "os system",
            "builtins eval",
            "posix system",
            "torch load",
            "pathlib Path",
            "torch Size",
            "x y",
        ]
        module, name = draw.choice(names).split()
        return (
            b"\x80\x04c"
            + f"{module}\n{name}\n".encode()
            + draw.choice([b"(Vx\ntR.", b".", b")\x81.", b"}b."])
        )
    if what == 2:
        return b"\x80\x04" + bytes(
            draw.choice(b"(.0125]}NK\x85\x86\x87\x94hq\x8c\x93RbuaesU") for _ in range(200)
        )
    return damaged(draw, template)


def model_folder(draw: random.Random, folder: Path, template: Path, private: Path) -> None:
    """A folder of a small model with a strange config, header or file."""
    for path in template.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if draw.random() < 0.6:
        config = json.loads((template / "config.json").read_text())
        (folder / "config.json").write_bytes(document(draw, config, private))
    else:
        weights = next(folder.glob("*.safetensors"))
        content = weights.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = document(draw, json.loads(content[8 : 8 + length]), private)
        size = draw.choice([len(header), 2**63, 0, 2**40]).to_bytes(8, "little")
        made = draw.choice([size + header + content[8 + length :], damaged(draw, content), archive(draw)])
        weights.write_bytes(made)


class Templates:
    """Good files that hostile ones are made of, and the readers of each kind."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import torch
        from torch.distributed.checkpoint import state_dict_saver

        from pretrain.media.write import write_mp4, write_wav
        from pretrain.model.args import ModelArgs
        from pretrain.model.checkpoint import write_model
        from pretrain.model.flavors import build_model

        self.model, self.state = folder / "model", folder / "state"
        sizes: Any = {
            "width": 48,
            "num_heads": 2,
            "ffn_width": 64,
            "num_alignment_blocks": 1,
            "num_fusion_blocks": 1,
        }
        args = ModelArgs(**sizes, text_width=64, time_frequencies=32, audio_embed_hidden=64)
        network = build_model(args)
        write_model(self.model, "debug", args, {"ema": network.state_dict()}, {"codec_id": "x"})
        state_dict_saver.save({"w": torch.ones(3), "n": {"a": 1}}, checkpoint_id=self.state, no_dist=True)
        self.metadata = (self.state / ".metadata").read_bytes()
        sound = np.sin(np.arange(4000, dtype=np.float32))
        write_mp4(folder / "a.mp4", np.zeros((9, 32, 32, 3), np.uint8), 24.0, sound, 16_000, {})
        write_wav(folder / "a.wav", sound, 16_000)
        self.media = [(folder / "a.mp4").read_bytes(), (folder / "a.wav").read_bytes()]


def write(draw: random.Random, kind: str, folder: Path, made: Templates, private: Path) -> Path:
    """One hostile input of a kind; where its reader begins."""
    bases = {"prompts": PROMPT, "votes": VOTE, "manifest": MANIFEST}
    path = folder / {"rubric": "r.yaml", "params": "params.yaml", "state": ".metadata"}.get(
        kind, f"{kind}.jsonl"
    )
    if kind in bases:
        path.write_bytes(rows(draw, bases[kind], private))
    elif kind in ("rubric", "params"):
        path.write_bytes(yaml_text(draw, RUBRIC if kind == "rubric" else PARAMS, private))
    elif kind == "state":
        path.write_bytes(state(draw, made.metadata, private))
    elif kind == "model":
        model_folder(draw, folder, made.model, private)
        return folder
    elif kind in ("codec", "set"):
        name = "config.json" if kind == "codec" else "manifest.json"
        (folder / name).write_bytes(document(draw, CODEC if kind == "codec" else SET, private))
        for part in ("video", "audio", "speaker"):
            (folder / f"{part}.safetensors").write_bytes(damaged(draw, b"\x08\0\0\0\0\0\0\0{}      "))
        (folder / "index.arrow").write_bytes(damaged(draw, b"ARROW1\0\0"))
        return folder
    elif kind == "archive":
        path = folder / draw.choice(["a.mp4", "a.wav", "a.jsonl", "a.png", "a.zip", "a.tar.gz"])
        path.write_bytes(archive(draw))
    else:
        path = folder / draw.choice(
            ["a.mp4", "a.wav", "a.m3u8", "a.ts", "a.mkv", "a.ffconcat", "a.png", "a.gif"]
        )
        text = draw.choice(PLAYLISTS).format(draw.choice([f"{private}/secret.mp4", "../private/secret.mp4"]))
        path.write_bytes(text.encode() if draw.random() < 0.6 else damaged(draw, draw.choice(made.media)))
    return path

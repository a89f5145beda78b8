"""A folder of clips of which thirty are broken, each in another way; a good one has a picture and a sound.

`python broken.py FOLDER [--good 270]` writes it.
"""

from __future__ import annotations

import argparse
import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from builders import AAC, H264, Source, build, ffmpeg, numbered_frame
from PIL import Image
from sources import AUDIO, VIDEO

Content = Callable[[Path], bytes]  # of a file, built in a folder of scraps
PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>nothing here</body></html>"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
)  # what a checkout without git-lfs has in place of the file


def clip(scraps: Path, name: str = "good.mp4", **fields: object) -> bytes:
    return build(Source(name, **fields), scraps).read_bytes()  # type: ignore[arg-type]


def written(scraps: Path, name: str, *arguments: str | Path) -> bytes:
    ffmpeg(*arguments, scraps / name)
    return (scraps / name).read_bytes()


def without_samples(scraps: Path) -> bytes:
    content = clip(scraps)
    return content[: content.index(b"mdat") + 4]


def cut(share: float, name: str, **fields: object) -> Content:
    def content(scraps: Path) -> bytes:
        whole = clip(scraps, name, **fields)
        return whole[: int(share * len(whole))]

    return content


def renamed(*names: tuple[bytes, bytes]) -> Content:
    """Four-character codes of another kind."""

    def content(scraps: Path) -> bytes:
        found = clip(scraps)
        for old, new in names:
            found = found.replace(old, new)
        return found

    return content


def noise_inside(scraps: Path) -> bytes:
    """The packets' bytes are another file's, the tables are right."""
    content = bytearray(clip(scraps))
    start, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    content[start:end] = np.random.default_rng(0).bytes(end - start)
    return bytes(content)


def two_sizes(scraps: Path) -> bytes:
    return b"".join(clip(scraps, f"{width}.ts", width=width) for width in (96, 64))


def huge_inside(scraps: Path) -> bytes:
    """The container says 96 x 64 pixels, the pictures in it 20,000 x 20,000."""
    small = ("-f", "lavfi", "-i", "testsrc=size=96x64:rate=24:duration=1", "-f", "lavfi")
    small += ("-i", "sine=duration=1:sample_rate=16000", "-c:v", "png", "-c:a", "flac")
    content = written(scraps, "huge.mkv", *small)
    at = content.index(b"IHDR")
    old = content[at : at + 17]
    new = old[:4] + struct.pack(">II", 20_000, 20_000) + old[12:]
    return content.replace(old + _crc(old), new + _crc(new))


def _crc(chunk: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(chunk))


def wav_of(samples: np.ndarray, subtype: str = "FLOAT") -> Content:
    def content(scraps: Path) -> bytes:
        soundfile.write(scraps / "a.wav", samples.astype(np.float32), 16_000, subtype=subtype)
        return (scraps / "a.wav").read_bytes()

    return content


def with_samples(samples: np.ndarray) -> Content:
    """A clip whose sound is given, as 32-bit floats."""

    def content(scraps: Path) -> bytes:
        wav_of(samples)(scraps)
        video = ("-f", "lavfi", "-i", "testsrc=size=96x64:rate=24:duration=1")
        return written(scraps, "a.mov", *video, "-i", scraps / "a.wav", *H264, *AUDIO["f32le"], "-shortest")

    return content


def picture(suffix: str) -> Content:
    def content(scraps: Path) -> bytes:
        Image.fromarray(numbered_frame(3, 64, 96)).save(scraps / f"a.{suffix}")
        return (scraps / f"a.{suffix}").read_bytes()

    return content


def zipped(scraps: Path) -> bytes:
    with zipfile.ZipFile(scraps / "a.zip", "w") as archive:
        archive.writestr("clip.mp4", clip(scraps))
    return (scraps / "a.zip").read_bytes()


def encrypted(scraps: Path) -> bytes:
    good = build(Source("good.mp4"), scraps)
    keys = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "0123456789abcdef" * 2)
    keys += ("-encryption_kid", "fedcba9876543210" * 2)
    return written(scraps, "encrypted.mp4", "-i", good, "-c", "copy", *keys)


def playlist(scraps: Path) -> bytes:
    """A list of other files: following it would read what nobody gave."""
    good = build(Source("elsewhere.ts"), scraps)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{good}\n#EXT-X-ENDLIST\n".encode()


def concatenation(scraps: Path) -> bytes:
    return f"ffconcat version 1.0\nfile '{build(Source('elsewhere.mp4'), scraps)}'\n".encode()


def wav_header(**changed: int) -> Content:
    """A wav whose header says something that cannot be; keys are offsets of 4 bytes, `at_24`."""

    def content(scraps: Path) -> bytes:
        whole = bytearray(wav_of(np.ones(1600) * 0.1, "PCM_16")(scraps))
        for place, value in changed.items():
            at = int(place.removeprefix("at_"))
            whole[at : at + 4] = value.to_bytes(4, "little")
        return bytes(whole)

    return content


NAN = np.where(np.arange(16_000) == 9000, np.nan, 0.1)
INFINITE = np.where(np.arange(16_000) == 9000, np.inf, 0.1)
FASTSTART = (*H264, "-movflags", "faststart")
LONG = {"num_frames": 96}

BROKEN: dict[str, Content] = {
    "empty.mp4": lambda scraps: b"",
    "page.mp4": lambda scraps: PAGE,
    "pointer.mp4": lambda scraps: POINTER,
    "zeros.mp4": lambda scraps: bytes(20_000),
    "random.mp4": lambda scraps: np.random.default_rng(1).bytes(20_000),
    "zip.mp4": zipped,
    "gzip.mp4": lambda scraps: gzip.compress(clip(scraps), mtime=0),
    "playlist.mp4": playlist,
    "concatenation.mp4": concatenation,
    "head_only.mp4": lambda scraps: clip(scraps)[:40],
    "without_index.mp4": without_samples,
    "cut_in_the_middle.mp4": cut(0.5, "good.mp4"),
    "cut_after_the_index.mp4": cut(0.6, "fast.mp4", video=FASTSTART, **LONG),
    "cut_matroska.mkv": cut(0.5, "a.mkv", audio=AUDIO["flac"], **LONG),
    "head_only.webm": cut(0.02, "a.webm", video=VIDEO["vp8"], audio=AUDIO["opus"], sample_rate_hz=48_000),
    "cut.mov": cut(0.7, "a.mov", audio=AUDIO["s16le"]),
    "noise_inside.mp4": noise_inside,
    "unknown_picture_codec.mp4": renamed((b"avc1", b"zzz1")),
    "unknown_sound_codec.mp4": renamed((b"mp4a", b"zzz4"), (b"esds", b"zzzs")),
    "encrypted.mp4": encrypted,
    "size_changes.mov": two_sizes,
    "huge_inside.mkv": huge_inside,
    "no_sound.mp4": lambda scraps: clip(scraps, "silent.mp4", audio=None),
    "a_photo.mp4": picture("jpg"),
    "nan.mov": with_samples(NAN),
    "infinite.mov": with_samples(INFINITE),
    "no_samples.wav": wav_of(np.zeros(0)),
    "no_rate.wav": wav_header(at_24=0),
    "nan.wav": wav_of(NAN),
    "cut.flac": cut(0.02, "a.flac", video=None, audio=AUDIO["flac"]),
}


def write_folder(folder: Path, scraps: Path, good: int) -> list[str]:
    """`good` clips of several containers and the broken ones; the names of the good ones, without suffix."""
    scraps.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [
        ("mp4", H264, AAC, 16_000),
        ("mkv", H264, AUDIO["flac"], 16_000),
        ("mov", VIDEO["mpeg4"], AUDIO["s16le"], 16_000),
        ("webm", VIDEO["vp8"], AUDIO["opus"], 48_000),
    ]
    contents = [
        (suffix, clip(scraps, f"k.{suffix}", video=video, audio=audio, sample_rate_hz=rate, num_frames=18))
        for suffix, video, audio, rate in kinds
    ]
    names = []
    for turn in range(good):
        suffix, content = contents[turn % len(contents)]
        (folder / f"clip{turn:03d}.{suffix}").write_bytes(content)
        names.append(f"clip{turn:03d}")
    for name, content in BROKEN.items():
        stem, suffix = name.rsplit(".", 1)
        (folder / f"broken_{stem}_{suffix}.{suffix}").write_bytes(content(scraps))
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--good", type=int, default=270)
    given = parser.parse_args()
    names = write_folder(given.folder, given.folder.with_name(given.folder.name + "_scraps"), given.good)
    print(f"{len(names)} good and {len(BROKEN)} broken clips in {given.folder}")


if __name__ == "__main__":
    main()

"""Create .venv and install the project into it; costs nothing when nothing changed, and two of them at once
wait for each other.

Usage: python3.11 .ci/bootstrap.py [arguments for pip when it installs torch]
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "nava-installed"
LOG = VENV / "setup.log"
TORCH = "torch==2.13.0"
LOCK = "requirements.lock"  # written by .ci/lock
CPU_HINT = 'make setup PIP_TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"'


def fingerprint() -> str:
    """Changes when the packages asked for, the way to install them, the interpreter or the folder change."""
    files = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", LOCK, ".ci/bootstrap.py"))
    return hashlib.sha256(files + repr((sys.version_info[:2], str(ROOT))).encode()).hexdigest()


def installed(torch_args: list[str]) -> bool:
    """True when .venv is what is asked for; a plain call accepts whatever torch an earlier call chose."""
    if not STAMP.exists():
        return False
    stamped, used_args = STAMP.read_text().split("\n", 1)
    return stamped == fingerprint() and (not torch_args or used_args == repr(torch_args))


def usable(python: Path) -> bool:
    return (
        python.exists() and subprocess.run([python, "-c", "import pip"], capture_output=True).returncode == 0
    )


def pip_install(what: str, arguments: list[str]) -> None:
    """Run pip with its output in the log and a line every ten seconds on the terminal; ends the program when
    pip fails."""
    print(f"  installing {what}", flush=True)
    command = [str(VENV / "bin/python"), "-m", "pip", "install", "--progress-bar", "off", *arguments]
    with LOG.open("ab") as log:
        pip = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT
        )
    start = said = time.monotonic()
    while pip.poll() is None:
        time.sleep(0.2)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"    {said - start:4.0f} s  {last_lines(1)[:110]}", flush=True)
    if pip.returncode:
        print(
            f"{last_lines(12)}\nmake: pip could not install {what} (all of it in {LOG}); mend that and run "
            "make again",
            file=sys.stderr,
        )
        raise SystemExit(2)


def last_lines(count: int) -> str:
    lines = LOG.read_text(errors="replace").strip().splitlines() if LOG.exists() else []
    return "\n".join(lines[-count:]).strip()


def install(torch_args: list[str]) -> None:
    print("setting up .venv: about three minutes, once", flush=True)
    STAMP.unlink(missing_ok=True)
    if not usable(VENV / "bin/python"):
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    LOG.write_text("")
    if not torch_args:
        print(
            f"  torch as pip finds it; if that is the CUDA build and you want the small CPU one: {CPU_HINT}",
            flush=True,
        )
    pip_install(TORCH, [TORCH, *torch_args])
    # Everything else by hash, and so as it was tested. Two of them (resemblyzer, audiobox-aesthetics) name
    # packages that are left out: webrtcvad needs a C compiler (webrtcvad-wheels is the same module as a
    # wheel), and torchaudio's CUDA build breaks transformers' imports; what is used of them needs neither.
    pip_install("packages by their hashes", ["--no-deps", "--require-hashes", "-r", LOCK])
    pip_install("the project", ["--no-deps", "-e", "."])


def main() -> None:
    if not (3, 11) <= sys.version_info < (3, 13):
        found = sys.version.split()[0]
        print(
            f"make: Python 3.11 or 3.12 is needed, this is {found}; say make PYTHON=/path/to/python3.11",
            file=sys.stderr,
        )
        raise SystemExit(2)
    torch_args = sys.argv[1:]
    with (ROOT / ".venv.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another make is setting up .venv; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if installed(torch_args):
            return
        start = time.monotonic()
        install(torch_args)
        STAMP.write_text(f"{fingerprint()}\n{torch_args!r}")
        print(f"  ready after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()

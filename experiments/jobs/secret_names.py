"""Which variables look like secrets, so that their values stay out of scripts, job descriptions and logs."""

from __future__ import annotations

import re

_ANYWHERE = "SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY"
_WORDS = "KEY|PASS|PWD|AUTH|SAS|COOKIE|BEARER|CREDS|PAT"
# TOKENIZERS_PARALLELISM and MAX_TOKENS are none
_NAME = re.compile(rf"(?:{_ANYWHERE})(?!IZ)|(?:^|[_-])(?:{_WORDS})S?(?:[_-]|\d*$)", re.IGNORECASE)
_COUNTS = re.compile(r"(?:MAX|NUM|MIN)_.*TOKENS", re.IGNORECASE)
_VALUE = re.compile(
    r"://[^/\s@]*:[^/\s@]*@"  # a login in a URL
    r"|(?i:\bbearer\s+\S{8})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|^(?:sk-|hf_|gh[opsu]_|github_pat_|glpat-|xox[abpr]-|AKIA|ASIA|ya29\.|eyJ[\w-]{8,}\.)"
)


def looks_secret(name: str, value: str) -> bool:
    """By the variable's name, or by what its value begins with or holds."""
    return bool((_NAME.search(name) and not _COUNTS.fullmatch(name)) or _VALUE.search(value))


def check_no_secret(name: str, value: str, remedy: str) -> None:
    """Raises ValueError, without the value, for one that whoever can read the file or the job would read."""
    if value and looks_secret(name, value):
        raise ValueError(f"--env {name}=...: it looks like a secret, which others could read there; {remedy}")

"""Encoded sets whose clips' files were replaced under the same names."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from encode_world import digests, encode_with, job, write_world
from test_encode import make_row


def test_verify_encodes_clips_anew_whose_files_were_replaced(tmp_path: Path) -> None:
    rows = [make_row(tmp_path, index) for index in range(6)]
    write_world(tmp_path, rows)
    one = job(tmp_path, tmp_path / "sets")
    encode_with(one)
    before = digests(tmp_path / "sets")
    first, other = (Path(row.data_path) for row in rows[:2])
    shutil.copy(other, first)  # another clip by the same name
    encode_with(one)  # a finished set: kept as it is
    assert digests(tmp_path / "sets") == before
    encode_with(replace(one, verify=True))
    encode_with(job(tmp_path, tmp_path / "anew"))
    assert digests(tmp_path / "sets") == digests(tmp_path / "anew") != before
    for path in (tmp_path / "sets").glob("rows/parts/*.json"):  # as an earlier version wrote it
        content = json.loads(path.read_text())
        del content["media"]
        path.write_text(json.dumps(content))
    shutil.copy(Path(rows[2].data_path), first)
    encode_with(replace(one, verify=True))
    kept = {name: digest for name, digest in digests(tmp_path / "sets").items() if "shard-" in name}
    assert kept == {name: digest for name, digest in digests(tmp_path / "anew").items() if "shard-" in name}

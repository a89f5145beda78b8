"""Files of the published rewards, named in one place of a recipe, and whether they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rewards.catalog import CATALOG
from rewards.recipes.base import DeviceOptions, ParkedOptions

# reward -> its option -> the field that names the file
FILES: Mapping[str, Mapping[str, str]] = {
    "syncnet": {"weights": "syncnet", "detector_weights": "face_detector"},
    "wer_whisper": {"weights": "whisper"},
    "sim_wavlm_ecapa": {"weights": "wavlm_ecapa"},
    "sim_redimnet": {"weights": "redimnet"},
    "audiobox_pq": {"weights": "audiobox"},
    "clap_text_cosine": {"weights": "clap"},
    "fd_verse_bench": {"weights": "clap"},
}
ENDPOINT = "wer_endpoint"
ADVICE = "put it there, or name it under reward_files (nothing is downloaded)"


@dataclass(frozen=True, kw_only=True)
class RewardFiles:
    """Files and folders of published rewards, relative to `folder`; "" = not named.

    `options` of a rubric file and `align.reward_options` come before them.
    """

    folder: Path = Path()
    syncnet: str = ""  # syncnet_v2.model
    face_detector: str = ""  # YuNet's ONNX file for syncnet; "" = OpenCV's own Haar cascade
    whisper: str = ""  # folder of a Whisper model
    whisper_name: str = "whisper"  # of its metric; whisper_large_v3 is checked by the model's shape
    wavlm_ecapa: str = ""  # wavlm_large_finetune.pth
    redimnet: str = ""
    audiobox: str = ""  # checkpoint.pt, or model.safetensors with config.json beside it
    clap: str = ""  # folder of laion/clap-htsat-fused
    transcription_url: str = ""  # http://HOST:PORT of the server that wer_endpoint asks
    transcription_model: str = ""
    device: str = "cpu"  # of the networks: auto (a GPU where there is one), cpu, cuda, cuda:1
    parked: bool = False  # networks but SyncNet's are on it only while they score, on the host between

    def options(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Options, as JSON values, of those of `names` that read files or ask the server; absolute paths."""
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            own: dict[str, Any] = {
                option: str((self.folder / named).absolute())
                for option, field in FILES.get(name, {}).items()
                if (named := getattr(self, field))
            }
            if name == ENDPOINT and self.transcription_url:
                own = {"base_url": self.transcription_url, "model": self.transcription_model}
            if not own:
                continue
            if "detector_weights" in own:
                own["detector"] = "yunet"
            if name == "wer_whisper":
                own["name"] = self.whisper_name
            if issubclass(CATALOG[name].options, DeviceOptions):
                own["device"] = self.device
            if self.parked and issubclass(CATALOG[name].options, ParkedOptions):
                own["parked"] = True
            found[name] = own
        return found

    def over(
        self, names: Sequence[str], given: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Mapping[str, Any]]:
        """`options` of `names`, with those of `given` (by reward) put over them."""
        own = self.options(names)
        return {name: {**own.get(name, {}), **given.get(name, {})} for name in {**own, **given}}


class MissingFile(NamedTuple):
    """What a reward needs and has not."""

    reward: str
    what: str
    field: str  # of RewardFiles

    def __str__(self) -> str:
        return f"{self.reward}: {self.what}"


def missing_files(options: Mapping[str, Mapping[str, Any]]) -> list[MissingFile]:
    """What the rewards of `options` read and what is not there; nothing is opened."""
    found = []
    for name, own in options.items():
        for option, field in FILES.get(name, {}).items():
            path = own.get(option)
            if option == "detector_weights" and own.get("detector") != "yunet":
                continue
            if not path:
                found.append(MissingFile(name, f"names no file; set reward_files.{field}=PATH", field))
            elif not Path(path).exists():
                found.append(MissingFile(name, f"{path}: no such file or folder", field))
        if name == ENDPOINT and not (own.get("base_url") and own.get("model")):
            what = "no server; set reward_files.transcription_url and .transcription_model"
            found.append(MissingFile(name, what, "transcription_url"))
    return found


def check_reward_files(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises FileNotFoundError in one line: the first file that is not there, and what else is missing."""
    if not (missing := missing_files(options)):
        return
    first, *others = missing
    advice = "" if "set reward_files" in first.what else f"; {ADVICE}"
    more = f" (missing too: {'; '.join(map(str, others))})" if others else ""
    raise FileNotFoundError(f"{first}{advice}{more}")

"""Recipes of sound rewards: voice similarity, noise, audio-text similarity."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rewards.base import Reward, Unscorable
from rewards.devices import device_for
from rewards.media_folder import left_out_line, scan_folder
from rewards.options import one_line
from rewards.recipes.base import NoOptions, ParkedOptions, Shared, needed

if TYPE_CHECKING:
    from rewards.semantic.clap import ClapEncoder
    from rewards.timbre.resemblyzer import ResemblyzerEncoder


@dataclass(frozen=True)
class BankOptions:
    """A folder with utterances of the known voices: VOICE_1.wav, VOICE_2.wav, ..."""

    bank: Path = Path("out/corpus/references")


def sim_resemblyzer(options: NoOptions, shared: Shared) -> Reward:
    from rewards.timbre.similarity import TimbreSimilarity

    return TimbreSimilarity(_resemblyzer(shared))


def sim_wavlm_ecapa(options: ParkedOptions, shared: Shared) -> Reward:
    """Called `sim`, as in the published tables, only with the published file's sha256."""
    from rewards.timbre.similarity import TimbreSimilarity
    from rewards.timbre.wavlm_ecapa import WavlmEcapaEncoder

    name = "sim_wavlm_ecapa"
    device = device_for(options.device, name)
    encoder = WavlmEcapaEncoder(
        needed(options.weights, name), options.sha256, device=device, park=options.parked
    )
    return TimbreSimilarity(encoder, "sim" if encoder.is_seed_tts else "")


def sim_redimnet(options: ParkedOptions, shared: Shared) -> Reward:
    """NAVA is conditioned on this encoder's embeddings: a reward or diagnostic, not a reported result."""
    from rewards.timbre.redimnet import ReDimNetEncoder
    from rewards.timbre.similarity import TimbreSimilarity

    weights, device = needed(options.weights, "sim_redimnet"), device_for(options.device, "sim_redimnet")
    return TimbreSimilarity(ReDimNetEncoder(weights, options.sha256, device=device, park=options.parked))


def voice_accuracy(options: BankOptions, shared: Shared) -> Reward:
    from rewards.timbre.voices import NearestVoice, VoiceBank

    files = _bank_files(options.bank)
    if not files:
        raise FileNotFoundError(
            f"voice_accuracy_resemblyzer: {options.bank}: no VOICE_NUMBER.wav in it; set .bank to such a "
            "folder"
        )
    encoder = _resemblyzer(shared)
    sounds = encoder.embed([_read_16khz(file) for file in files])
    return NearestVoice(
        encoder,
        VoiceBank(
            tuple(file.stem.rpartition("_")[0] for file in files), tuple(file.stem for file in files), sounds
        ),
    )


def noise_estimate(options: NoOptions, shared: Shared) -> Reward:
    from rewards.quality.noise import NoiseEstimate

    return NoiseEstimate()


def audiobox(options: ParkedOptions, shared: Shared) -> Reward:
    from rewards.quality.audiobox import AudioboxAesthetics

    path, device = needed(options.weights, "audiobox_pq"), device_for(options.device, "audiobox_pq")
    try:
        return AudioboxAesthetics.load(path, options.sha256, device=device, park=options.parked)
    except ImportError as error:
        raise ValueError(f"audiobox_pq: {error}") from None


def fd_verse_bench(options: ParkedOptions, shared: Shared) -> Reward:
    from rewards.semantic.clap import VerseBenchDistance

    return VerseBenchDistance(_clap(options, shared, "fd_verse_bench"))


def clap_text(options: ParkedOptions, shared: Shared) -> Reward:
    from rewards.semantic.clap import TextSoundCosine

    return TextSoundCosine(_clap(options, shared, "clap_text_cosine"))


def _resemblyzer(shared: Shared) -> ResemblyzerEncoder:
    from rewards.timbre.resemblyzer import ResemblyzerEncoder

    return shared.get("resemblyzer", ResemblyzerEncoder)


def _clap(options: ParkedOptions, shared: Shared, name: str) -> ClapEncoder:
    from rewards.semantic.clap import ClapEncoder

    folder, device = needed(options.weights, name), device_for(options.device, name)
    key = ("clap", folder, options.sha256, device, options.parked)
    return shared.get(
        key, lambda: ClapEncoder.load(folder, options.sha256, device=device, park=options.parked)
    )


def _bank_files(bank: Path) -> list[Path]:
    """VOICE_NUMBER.wav of a folder; what else is there is said in the log."""
    if not bank.is_dir():
        return []
    found = scan_folder(bank, {".wav"}, subfolders=False)
    files = [file for file in found.files if "_" in file.stem]
    unnamed = len(found.files) - len(files)
    left_out = {**found.left_out, **({".wav not named VOICE_NUMBER": unnamed} if unnamed else {})}
    if files and left_out:
        logging.getLogger(__name__).warning("%s: %s", bank, left_out_line(left_out))
    return files


def _read_16khz(file: Path) -> np.ndarray:
    import soundfile

    from rewards.sound import mono_16khz
    from rewards.types import Clip

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        return mono_16khz(Clip(samples.T, rate))
    except (RuntimeError, Unscorable) as error:  # soundfile's are RuntimeErrors
        raise ValueError(
            f"{file}: no recording of a voice ({one_line(error)}); write it again or remove it"
        ) from None

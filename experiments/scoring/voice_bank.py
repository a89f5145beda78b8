"""The voices that a clip's voice is compared with, as the corpus has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.scoring.samples import SourceClip, reference_sounds
from rewards.base import Reward
from rewards.timbre.encoder import VoiceEncoder
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.similarity import TimbreSimilarity
from rewards.timbre.voices import VoiceBank


def voice_bank(encoder: VoiceEncoder, samples: Sequence[SourceClip], manifest: Path) -> VoiceBank:
    """Voices as the real one-speaker clips and the reference recordings have them; nothing generated.

    References alone would not do: they are longer than a clip's one word, and a codec's word lies nearer to
    another voice's clips (measured: 0.83 of the codec's clips right against 0.98). Raises ValueError naming
    `manifest` where there is no voice at all.
    """
    real = [
        sample
        for sample in samples
        if sample.source == "real" and len(sample.clip.voices) == 1 and sample.clip.waveform is not None
    ]
    entries = [(sample.clip.voices[0], sample.data_id, sample.clip.waveform) for sample in real]
    for voice, sounds in reference_sounds(samples).items():
        entries += [(voice, f"reference {voice} {index}", sound) for index, sound in enumerate(sounds)]
    if not entries:
        raise ValueError(
            f"{manifest}: no one-speaker clip with meta.voices and no reference; voices cannot be told "
            "apart without"
        )
    voices, names, sounds = zip(*entries, strict=True)
    return VoiceBank(voices, names, encoder.embed(sounds))


def timbre_encoder(rewards: Iterable[Reward]) -> VoiceEncoder:
    """The Resemblyzer of the timbre reward among them, so that no sound is embedded twice, or a new one."""
    found = (reward.encoder for reward in rewards if isinstance(reward, TimbreSimilarity))
    return next((encoder for encoder in found if encoder.name == "resemblyzer"), None) or ResemblyzerEncoder()

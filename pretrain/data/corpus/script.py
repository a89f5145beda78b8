"""Writes the script of every clip and prompt set: speaker, words, voice and wall."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypedDict

import numpy as np

from pretrain.data.corpus import texts
from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.cast import (
    BACKGROUNDS,
    CAMERA_MOVES,
    CHARACTER_BY_NAME,
    CHARACTER_BY_VOICE,
    CHARACTERS,
    STATIC,
)
from pretrain.data.corpus.casting import Casting, WordVoice, choose_reference, pair_cycle, rng_for
from pretrain.data.corpus.config import CorpusConfig
from pretrain.data.corpus.plan import CLEAN_SNR_DB, FPS, LONG_FRAMES, SHORT_FRAMES, ClipPlan, SoundEvent, Turn
from pretrain.data.corpus.sound import THUDS_HZ, TONES_HZ

ONSET_S = (0.08, 0.2)
GAIN_DB = (-3.0, 3.0)
NOISE_SNR_DB = (25.0, 40.0)
BALL_COLOURS, LIGHT_COLOURS = ("red", "green", "white"), ("yellow", "white", "orange")


def training_sets(config: CorpusConfig, casting: Casting) -> dict[str, list[ClipPlan]]:
    """The clips of every set, `validation` included (its texts are those of the prompt set pretrain_seen)."""
    return {
        "paired": _paired(config, casting),
        "audio_only": _sounds(config, casting, "audio_only", config.audio_only, config.noisy_share),
        "hq_audio": _sounds(config, casting, "hq_audio", config.hq_audio, 0.0),
        "validation": _one_speaker(config, casting, "validation", casting.seen, config.validation),
    }


def prompt_sets(
    config: CorpusConfig, casting: Casting, validation: list[ClipPlan]
) -> dict[str, list[ClipPlan]]:
    """The prompts of every set, as plans that nobody renders."""
    seen, held_out = casting.seen, casting.held_out
    align = {
        name: _one_speaker(config, casting, name, seen, count, split=name, distinct=True)
        for name, count in (
            (texts.ALIGN_TRAIN, config.prompts_align_train),
            (texts.ALIGN_HELD_OUT, config.prompts_align_held_out),
        )
    }
    pairs = pair_cycle(seen, rng_for(config.seed, "pretrain_camera"))
    dialogues = [_dialogue_prompt(config, casting, i) for i in range(config.prompts_dialogue)]
    return {
        "pretrain_seen": validation,
        "pretrain_heldout_pairs": _one_speaker(
            config, casting, "pretrain_heldout_pairs", held_out, config.prompts_heldout_pairs
        ),
        "pretrain_disagree": _disagree(config, casting),
        "pretrain_dialogue": dialogues,
        "pretrain_dialogue_exchanged": [_with_voices_exchanged(plan) for plan in dialogues],
        "pretrain_camera": [
            _face(config, casting, "pretrain_camera", i, next(pairs), camera=_move(i))
            for i in range(config.prompts_camera)
        ],
        **align,
    }


def _paired(config: CorpusConfig, casting: Casting) -> list[ClipPlan]:
    count, name = config.paired, "paired"
    dialogues, events, moves = (
        round(count * share) for share in (config.dialogue_share, config.event_share, config.camera_share)
    )
    pairs = pair_cycle(casting.seen, rng_for(config.seed, name, "pairs"))
    swaps = _every(config.swapped_share)
    plans = []
    for i in range(count - dialogues - events):
        camera = _move(i) if i < moves else STATIC
        plans.append(
            _face(
                config,
                casting,
                name,
                i,
                next(pairs),
                swapped=next(swaps),
                camera=camera,
                noisy=config.noisy_share,
            )
        )
    swaps = _every(config.dialogue_swapped_share)
    plans += [
        _dialogue(config, casting, name, i, config.noisy_share, swapped=next(swaps)) for i in range(dialogues)
    ]
    plans += [_event(config, name, i) for i in range(events)]
    return _numbered(config, name, plans)


def _sounds(config: CorpusConfig, casting: Casting, name: str, count: int, noisy: float) -> list[ClipPlan]:
    """Heard, not seen."""
    shares = (config.audio_dialogue_share, config.audio_event_share) if name == "audio_only" else (0.0, 0.0)
    dialogues, events = (round(count * share) for share in shares)
    pairs = pair_cycle(casting.seen, rng_for(config.seed, name, "pairs"))
    plans = [_event(config, name, i, seen=False) for i in range(events)]
    for i in range(count - events):
        rng = rng_for(config.seed, name, "sound", i)
        spoken = [next(pairs)]
        if i < dialogues:
            spoken.append(next(pair for pair in pairs if pair[1] != spoken[0][1]))
        turns = _turns(casting, spoken, [""] * len(spoken), rng)
        described = turns[0].voice if _is_described(config, i) else ""
        text = str(rng.choice(texts.sound_texts(turns, described)))
        kind, frames = ("dialogue", LONG_FRAMES) if i < dialogues else ("speech", SHORT_FRAMES)
        plans.append(
            ClipPlan("", name, kind, text, frames, turns, described_voice=described, **levels(rng, noisy))
        )
    return _numbered(config, name, plans)


def _one_speaker(
    config: CorpusConfig,
    casting: Casting,
    name: str,
    pairs: tuple[WordVoice, ...],
    count: int,
    split: str = texts.PRETRAIN,
    distinct: bool = False,
) -> list[ClipPlan]:
    """Static clips of one face with its usual voice; raises ValueError when `distinct` texts run out."""
    plans: list[ClipPlan] = []
    used: set[str] = set()
    if count and not pairs:
        raise ValueError(
            f"{name}: {count} clips asked for, and there is no word-voice pair for them; set held_out_pairs"
        )
    misses = 0  # in a row; as many as there are pairs = no pair has a text left
    for i, pair in enumerate(pair_cycle(pairs, rng_for(config.seed, name, "pairs")) if count else ()):
        if len(plans) == count or misses > 2 * len(pairs):
            break
        try:
            plan = _face(config, casting, name, i, pair, split=split, used=used if distinct else None)
        except LookupError:
            misses += 1
            continue
        misses = 0
        used.add(plan.text)
        plans.append(dataclasses.replace(plan, pair_held_out=pair in casting.held_out))
    if len(plans) < count:
        raise ValueError(
            f"prompts_{name}: only {len(plans)} different texts exist, {count} were asked for; ask for fewer"
        )
    return [dataclasses.replace(plan, data_id=f"{name}-{i:05d}") for i, plan in enumerate(plans)]


def _disagree(config: CorpusConfig, casting: Casting) -> list[ClipPlan]:
    """The text describes the face's usual voice, the reference is another one."""
    pairs = pair_cycle(casting.seen, rng_for(config.seed, "pretrain_disagree"))
    name = "pretrain_disagree"
    return [
        _face(config, casting, name, i, next(pairs), swapped=True, described=True)
        for i in range(config.prompts_disagree)
    ]


def _face(
    config: CorpusConfig,
    casting: Casting,
    name: str,
    index: int,
    pair: WordVoice,
    *,
    swapped: bool = False,
    described: bool | None = None,
    camera: str = STATIC,
    noisy: float = 0.0,
    split: str = texts.PRETRAIN,
    used: set[str] | None = None,
) -> ClipPlan:
    """One face with one word, of a text not in `used`. Raises LookupError when no text is left."""
    rng = rng_for(config.seed, name, "face", index)
    who = CHARACTER_BY_VOICE[pair[1]]
    if swapped:
        others = [other for other in CHARACTERS if other != who]
        who = others[int(rng.integers(len(others)))]
    turns = _turns(casting, [pair], [who.name], rng)
    described = _is_described(config, index) if described is None else described
    voice = who.voice if described else ""
    choices = [
        choice
        for choice in texts.one_speaker_texts(turns[0], voice, split, camera)
        if not used or choice[0] not in used
    ]
    if not choices:
        raise LookupError(f"{pair}: every text of split {split!r} is taken")
    text, wall = choices[int(rng.integers(len(choices)))]
    kind = "speech" if camera == STATIC else "camera"
    data_id = f"{name}-{index:05d}"
    return ClipPlan(
        data_id, name, kind, text, SHORT_FRAMES, turns, None, wall, camera, voice, **levels(rng, noisy)
    )


def _dialogue(
    config: CorpusConfig, casting: Casting, name: str, index: int, noisy: float, *, swapped: bool = False
) -> ClipPlan:
    """Two faces, one after the other, each with its usual voice or, `swapped`, with two voices drawn anew."""
    rng = rng_for(config.seed, name, "dialogue", index)
    left, right = rng.permutation(len(CHARACTERS))[:2]
    people = CHARACTERS[left], CHARACTERS[right]
    usual = [person.voice for person in people]
    voices = usual
    while swapped and voices == usual:
        voices = [CHARACTERS[place].voice for place in rng.permutation(len(CHARACTERS))[:2]]
    spoken: list[WordVoice] = []
    for voice in voices:
        words = [
            word for word, owner in casting.seen if owner == voice and word not in {w for w, _ in spoken}
        ]
        spoken.append((words[int(rng.integers(len(words)))], voice))
    turns = _turns(casting, spoken, [person.name for person in people], rng)
    return _dialogue_of(config, name, index, turns, levels(rng, noisy), rng)


def _dialogue_prompt(config: CorpusConfig, casting: Casting, index: int) -> ClipPlan:
    """Usual voices, and words that training has in both of them, whichever speaks."""
    name = "pretrain_dialogue"
    rng = rng_for(config.seed, name, "prompt", index)
    left, right = rng.permutation(len(CHARACTERS))[:2]
    people = CHARACTERS[left], CHARACTERS[right]
    seen = set(casting.seen)
    words = sorted({word for word, _ in seen if all((word, person.voice) in seen for person in people)})
    first, second = rng.permutation(len(words))[:2]
    spoken = [(words[first], people[0].voice), (words[second], people[1].voice)]
    turns = _turns(casting, spoken, [person.name for person in people], rng)
    return _dialogue_of(config, name, index, turns, levels(rng, 0.0), rng)


def _dialogue_of(
    config: CorpusConfig,
    name: str,
    index: int,
    turns: tuple[Turn, ...],
    sound: _Levels,
    rng: np.random.Generator,
) -> ClipPlan:
    described = CHARACTER_BY_NAME[turns[0].character].voice if _is_described(config, index) else ""
    choices = list(texts.two_speaker_texts((turns[0], turns[1]), described))
    text, wall = choices[int(rng.integers(len(choices)))]
    data_id = f"{name}-{index:05d}"
    return ClipPlan(
        data_id, name, "dialogue", text, LONG_FRAMES, turns, None, wall, STATIC, described, **sound
    )


def _with_voices_exchanged(plan: ClipPlan) -> ClipPlan:
    """The same prompt and name, which draws the noise, each turn with the other's reference."""
    first, second = plan.turns
    turns = (
        dataclasses.replace(first, voice=second.voice, reference=second.reference),
        dataclasses.replace(second, voice=first.voice, reference=first.reference),
    )
    return dataclasses.replace(plan, set_name="pretrain_dialogue_exchanged", turns=turns)


def _event(config: CorpusConfig, name: str, index: int, seen: bool = True) -> ClipPlan:
    rng = rng_for(config.seed, name, "event", index)
    first_s, period_s = float(rng.uniform(0.08, 0.22)), float(rng.uniform(0.26, 0.4))
    if index % 2:
        event = SoundEvent(
            "ball", str(rng.choice(BALL_COLOURS)), str(rng.choice(list(THUDS_HZ))), first_s, period_s
        )
    else:
        event = SoundEvent(
            "light", str(rng.choice(LIGHT_COLOURS)), str(rng.choice(list(TONES_HZ))), first_s, period_s
        )
    wall = str(rng.choice(list(BACKGROUNDS))) if seen else ""
    text = texts.event_text(event, wall)
    return ClipPlan(
        "", name, "event", text, SHORT_FRAMES, (), event, wall, gain_db=float(rng.uniform(*GAIN_DB))
    )


def _turns(
    casting: Casting, spoken: list[WordVoice], people: list[str], rng: np.random.Generator
) -> tuple[Turn, ...]:
    """Turn i starts within the i-th second-long half of the clip."""
    words = {word for word, _ in spoken}
    turns = []
    for i, ((word, voice), person) in enumerate(zip(spoken, people, strict=True)):
        take = int(rng.integers(len(load_bank().utterances[word, voice])))
        onset_s = i * (LONG_FRAMES // 2) / FPS + float(rng.uniform(*ONSET_S))
        turns.append(Turn(word, voice, person, take, onset_s, choose_reference(casting, voice, words, rng)))
    return tuple(turns)


class _Levels(TypedDict):
    gain_db: float
    snr_db: float


def levels(rng: np.random.Generator, noisy: float) -> _Levels:
    """Gain and signal-to-noise ratio of a clip; the share `noisy` of clips has noise."""
    snr_db = float(rng.uniform(*NOISE_SNR_DB)) if rng.random() < noisy else CLEAN_SNR_DB
    return {"gain_db": float(rng.uniform(*GAIN_DB)), "snr_db": round(snr_db, 2)}


def _every(share: float) -> Iterator[bool]:
    """True for exactly this share of any long run, evenly spread."""
    total = 0.0
    while True:
        yield int(total + share + 1e-9) > int(total + 1e-9)
        total += share


def _is_described(config: CorpusConfig, index: int) -> bool:
    return int((index + 1) * config.described_share + 1e-9) > int(index * config.described_share + 1e-9)


def _move(index: int) -> str:
    return list(CAMERA_MOVES)[index % len(CAMERA_MOVES)]


def _numbered(config: CorpusConfig, name: str, plans: list[ClipPlan]) -> list[ClipPlan]:
    """Kinds mixed in one fixed order, so that the first rows of a set are a fair sample of it."""
    order = rng_for(config.seed, name, "order").permutation(len(plans))
    return [dataclasses.replace(plans[index], data_id=f"{name}-{i:05d}") for i, index in enumerate(order)]

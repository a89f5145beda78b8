"""Every path that runs on a GPU, on a pretended one: nothing on the wrong device, and each value that is read
from it or sent to it is one of those listed here, with the reason why it may."""

from collections.abc import Callable
from functools import partial

import device_networks as networks
import device_scenes as scenes
import pytest
from context_ranks import cases

from pretrain.model.flavors import FLAVORS
from pretrain.types import Task

Held = dict[str, tuple[int, str]]  # of a scene: place -> how often, and why

NONE: Held = {}
STEP: Held = {
    "read pretrain/titan/trainer.py train_step": (
        3,
        "per step, however many micro-batches: the counts that divide the loss and the wish to stop; the "
        "norm that decides whether to step; the loss that is logged and decides with it",
    )
}
LEARN: Held = {
    "read finetune/trainer.py _step": (1, "per optimizer step: all metrics of its micro-batches at once"),
    "read finetune/trainer.py _apply": (1, "per optimizer step: the norm that decides whether to step"),
}
ON_POLICY: Held = {
    "read finetune/objectives/grpo.py _check_step": (
        2,
        "before the first update of a round, per modality: the steps that count, for an assertion",
    ),
    "read finetune/objectives/grpo.py check_on_policy": (
        2,
        "before the first update of a round, per modality: an assertion",
    ),
}
MADE: Held = {
    "read finetune/rollout.py _sampled": (2, "per batch of clips: video and audio, for the rewards")
}
STEPS: Held = {**MADE, "read pretrain/types.py sent": (6, "per batch of clips: the kept steps")}
UNIPC = "per step and modality: diffusers' scheduler makes its coefficients on the device"
CODEC_ENDS = "per call: the codec's input comes from the host, its answer goes there"

JOINT = ("joint", "padded, one apart, first frame", "text dropped and padded", "audio only")
DEBUG = ("debug", "debug_dual_tower", "debug_unified", "debug_published")


def check(scene: Callable[[], dict[str, int]], held: Held) -> None:
    assert scene() == {place: count for place, (count, _) in held.items()}


@pytest.mark.parametrize("case", JOINT)
@pytest.mark.parametrize("name", DEBUG)
def test_a_forward_pass_waits_for_nothing(name, case):
    check(partial(scenes.forward, name, case), NONE)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in cases() if case not in JOINT])
@pytest.mark.parametrize("name", DEBUG)
def test_every_kind_of_forward_pass_waits_for_nothing(name, case):
    check(partial(scenes.forward, name, case), NONE)


@pytest.mark.parametrize("name", FLAVORS)
def test_every_flavor_keeps_to_its_device(name):
    scenes.shapes(name)


@pytest.mark.parametrize("first_frame", [False, True])
def test_an_euler_step_waits_for_nothing(first_frame):
    check(partial(scenes.sampling, "euler", 1, first_frame), NONE)


@pytest.mark.slow
@pytest.mark.parametrize("first_frame", [False, True])
def test_steps_add_nothing(first_frame):
    check(partial(scenes.sampling, "euler", 4, first_frame), NONE)


@pytest.mark.parametrize(("steps", "sends"), [(2, 12), pytest.param(4, 36, marks=pytest.mark.slow)])
def test_unipc_sends_its_coefficients(steps, sends):
    held = {"send pretrain/flow/solvers.py step": (sends, UNIPC)}
    check(partial(scenes.sampling, "unipc", steps, scales=scenes.NO_GUIDANCE), held)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_training_step_reads_three_times(micro_batches):
    check(partial(scenes.training_step, Task.TI2AV, micro_batches), STEP)


@pytest.mark.parametrize("task", [task for task in Task if task != Task.TI2AV])
def test_so_does_every_task(task):
    check(partial(scenes.training_step, task), STEP)


def test_validation_reads_nothing_before_its_end():
    check(scenes.validation, NONE)


@pytest.mark.parametrize("first_frame", [False, True])
@pytest.mark.parametrize(("stochastic", "held"), [(False, MADE), (True, STEPS)])
def test_a_rollout_reads_its_clips(stochastic, held, first_frame):
    check(partial(scenes.rollout, 2, stochastic, first_frame), held)


@pytest.mark.parametrize("name", ["nft", "awm", "rwr", "grpo", "gsb_dpo"])
def test_an_objective_reads_twice_per_optimizer_step(name):
    check(partial(scenes.learning, name, True), LEARN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nft", "awm", "rwr", "grpo", "grpo joint", "gsb_dpo"])
def test_however_many_micro_batches(name):
    check(partial(scenes.learning, name, micro_batch=1), LEARN)


def test_the_first_batch_of_a_round_is_asserted_to_be_on_policy():
    check(partial(scenes.learning, "grpo", on_policy=True), {**LEARN, **ON_POLICY})


def ends(module: str, calls: dict[str, tuple[int, int]]) -> Held:
    """name -> (reads, sends) of a codec's functions."""
    counts = {
        f"{kind} {module} {name}": (count, CODEC_ENDS)
        for name, both in calls.items()
        for kind, count in zip(("read", "send"), both, strict=True)
        if count
    }
    return dict(sorted(counts.items()))


LTX = {
    **ends("pretrain/codecs/published/ltx_audio.py", {"encode": (1, 1), "decode_channels": (1, 1)}),
    "send pretrain/codecs/published/ltx_mel.py log_mel": (1, "per call: its filters"),
}
WAN = {
    **ends("pretrain/codecs/published/wan.py", {"encode": (1, 1), "decode": (1, 1)}),
    "send pretrain/codecs/published/wan.py <genexpr>": (4, "per call: mean and deviation of the latents"),
}
SPEAKER = {
    **ends("pretrain/codecs/published/redimnet.py", {"embed": (1, 1)}),
    "send rewards/timbre/redimnet_mel.py log_mel": (2, "per call: its filters and window"),
}
BY_LENGTH = ends("rewards/timbre/encoder.py", {"by_length": (2, 2)})  # two lengths
VOICES = {**BY_LENGTH, "send rewards/timbre/redimnet_mel.py log_mel": (4, "per batch: filters and window")}
SYNC = ends("rewards/sync/inference.py", {"_divided": (2, 0), "_stacked": (0, 2), "sound": (0, 1)})

CLAP = {
    "read rewards/semantic/clap.py _unit": (2, "per call: the answers of sounds and of texts"),
    "read rewards/semantic/clap.py embed_sounds": (1, "per batch: the network looks which sounds are long"),
    "send rewards/semantic/clap.py embed_sounds": (1, CODEC_ENDS),
    "send rewards/semantic/clap.py embed_texts": (2, CODEC_ENDS),
}
AUDIOBOX = {
    "read rewards/quality/audiobox.py _score": (1, CODEC_ENDS),
    "send rewards/quality/audiobox.py _answer": (2, "per batch: sounds and their masks"),
}


def test_ltx_sound_codec():
    check(networks.ltx, LTX)


@pytest.mark.slow
def test_wan_video_codec():
    check(networks.wan, WAN)


def test_umt5(tmp_path):
    check(partial(networks.umt5, tmp_path), ends("pretrain/codecs/published/umt5.py", {"encode": (1, 2)}))


def test_voice_of_a_reference():
    check(networks.speaker, SPEAKER)


@pytest.mark.parametrize(("name", "held"), [("redimnet", VOICES), ("wavlm_ecapa", BY_LENGTH)])
def test_voice_rewards(name, held):
    check(partial(networks.voices, name), held)


def test_syncnet():
    check(networks.syncnet, SYNC)


def test_clap(tmp_path):
    check(partial(networks.clap, tmp_path), CLAP)


def test_audiobox():
    check(networks.audiobox, AUDIOBOX)


@pytest.mark.slow
def test_whispers_network(tmp_path):
    found = networks.whisper(tmp_path)
    assert (
        found["read elsewhere"] == 1
    )  # transformers' attention masks are sent, the logits are read by the test

"""Sync rewards: lips and loudness, the reduced SyncNets of the pipeline, the published SyncNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewards.base import Reward
from rewards.devices import device_for
from rewards.recipes.base import DeviceOptions, NoOptions, Shared, needed
from rewards.sync.crops import CropSource
from rewards.sync.faces import Detector

DetectorName = Literal["given", "haar", "yunet"]
TrackingName = Literal["syncnet_python", "latentsync", "verse_bench", "as_given"]


@dataclass(frozen=True)
class MiniOptions:
    """A network trained by stage `syncnet`, and the crop size and margin around the clips' mouth boxes."""

    model: Path = Path("out/syncnet/reward")
    margin: float | None = None


@dataclass(frozen=True)
class JudgeOptions(MiniOptions):
    """The second network (other seed, other words), which is never rewarded."""

    model: Path = Path("out/syncnet/judge")


@dataclass(frozen=True)
class PublishedOptions(DeviceOptions):
    """syncnet_v2.model, a face detector (YuNet needs its own file) and a published tracking variant."""

    detector: DetectorName = "haar"
    detector_weights: Path | None = None
    detector_sha256: str = ""
    tracking: TrackingName = "syncnet_python"


def lip_loudness(options: NoOptions, shared: Shared) -> Reward:
    from rewards.lips import LipLoudness

    return LipLoudness()


def sync_mini(options: MiniOptions, shared: Shared) -> Reward:
    return _mini(options, "sync_mini")


def sync_judge(options: MiniOptions, shared: Shared) -> Reward:
    return _mini(options, "sync_judge")


def syncnet(options: PublishedOptions, shared: Shared) -> Reward:
    from rewards.sync import tracking
    from rewards.sync.crops import FaceTracks
    from rewards.sync.scorer import SyncReward
    from rewards.sync.syncnet import load_published

    net = load_published(needed(options.weights, "syncnet"), options.sha256)
    variants = (tracking.SYNCNET_PYTHON, tracking.LATENTSYNC, tracking.VERSE_BENCH, tracking.AS_GIVEN)
    variant = next(variant for variant in variants if variant.name == options.tracking)
    device = device_for(options.device, "syncnet")
    return SyncReward(net, FaceTracks(_detector(options), variant), name="syncnet", device=device)


def _mini(options: MiniOptions, name: str) -> Reward:
    from rewards.sync.crops import MOUTH_MARGIN, MouthBoxes
    from rewards.sync.scorer import SyncReward
    from rewards.sync.syncnet import load_syncnet

    if not options.model.is_dir():
        raise FileNotFoundError(
            f"{name}: {options.model}: no such folder; train it (`nava syncnet`) or set {name}.model=FOLDER"
        )
    net = load_syncnet(options.model)
    crops: CropSource = MouthBoxes(
        net.args.image_size, MOUTH_MARGIN if options.margin is None else options.margin
    )
    return SyncReward(net, crops, name=name)


def _detector(options: PublishedOptions) -> Detector:
    from rewards.sync.faces import GivenFaces, HaarDetector, YuNetDetector

    if options.detector == "given":
        return GivenFaces()
    try:
        if options.detector == "haar":
            return HaarDetector()
        return YuNetDetector(
            needed(options.detector_weights, "syncnet", "detector_weights"), options.detector_sha256
        )
    except ImportError as error:
        raise ValueError(f"syncnet.detector={options.detector}: {error}") from None

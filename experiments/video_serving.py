"""`nava serve generate` before and around the service: what is asked for, checked; its start and its end."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.serving import limits_of

if TYPE_CHECKING:
    from experiments.video_options import VideoServing
    from orchestration.generation_service.deployment import GenerationServiceConfig, Operator
    from orchestration.generation_service.making import ServedModel
    from pretrain.generation.config import GenerateConfig

FOLDER = "videos"  # under OUT: jobs, results and the audit


def checked(
    options: VideoServing, defaults: GenerateConfig, out: Path, ray: str, insecure_ray: bool
) -> GenerationServiceConfig:
    """The service's configuration, without its token. Raises ValueError or FileNotFoundError in one line for
    whatever can be wrong without loading the model."""
    from orchestration.generation_service.app import AppConfig
    from orchestration.generation_service.deployment import GenerationServiceConfig
    from orchestration.generation_service.limits import JobLimits
    from orchestration.generation_service.offer import Offer
    from orchestration.ray_security import check_mode, join_securely
    from orchestration.service.access import read_tokens
    from orchestration.service.limits import Limits
    from pretrain.model.checkpoint import read_model_folder

    options.check_numbers()
    limits, jobs = limits_of(options.limits, Limits, JobLimits)
    folder, tokens = out / FOLDER, out / "service" / "tokens.json"
    read_tokens(tokens)
    config = replace(defaults, batch_size=options.batch, seeds=(), keep_latents=False)
    served = _served(options, config, out)
    if ray == "local":
        check_mode(insecure_ray)
    else:
        join_securely(ray, insecure_ray)
    offer = Offer(
        name=options.name or served.model.name,
        config=config,
        adapters=tuple(served.adapters),
        limits=jobs,
        made=int(served.model.stat().st_mtime),
        facts=dict(read_model_folder(served.model).facts),
        adapter_ids=served.adapter_ids,
    )
    return GenerationServiceConfig(
        app=AppConfig(offer=offer, folder=folder.resolve(), limits=limits, batch=options.batch),
        served=served,
        token_digest=b"",
        workers=options.workers,
        cpus=options.cpus,
        gpus=options.gpus,
        threads=options.threads,
        niceness=options.niceness,
        tokens=tokens,
        audit=folder / "audit.jsonl",
        insecure_ray=insecure_ray,
        fail_waiting=options.fail_waiting,
    )


def _served(options: VideoServing, config: GenerateConfig, out: Path) -> ServedModel:
    """Raises ValueError or FileNotFoundError for a model, codec or adapter that is none or does not fit."""
    from experiments.runs.registry import model_and_codec, model_folder
    from finetune.adapters import check_adapter
    from orchestration.generation_service.making import ServedModel
    from pretrain.codecs.load import load_codecs
    from pretrain.generation.config import device_of
    from pretrain.generation.maker import check_fit
    from pretrain.model.checkpoint import read_model_folder

    model, codec = model_and_codec(options.model, options.codec, out, out / "codec")
    for path, hint in ((model, "train one or give --model"), (codec, "fit one or give --codec")):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder; {hint}")
    if not options.gpus:
        device_of(config)
    described = read_model_folder(model)
    check_fit(described, model, load_codecs(codec), codec)
    adapters = {name: model_folder(path, out) for name, path in options.named_adapters().items()}
    return ServedModel(
        model=model.resolve(),
        codec=codec.resolve(),
        config=config,
        adapters={name: path.resolve() for name, path in adapters.items()},
        checkpoint_id=str(described.facts["checkpoint_id"]),
        adapter_ids={name: check_adapter(path, model).adapter_id for name, path in adapters.items()},
        resident=options.resident,
    )


def serve_videos(
    config: GenerationServiceConfig, ray: str, host: str, port: int, token: str, shown: str
) -> None:
    """Serves until SIGINT or SIGTERM; batches that run then finish first, unless a second one comes. shown:
    the shell's word for the token."""
    from orchestration.generation_service.deployment import running_videos
    from orchestration.service.access import digest_of
    from orchestration.service.hosting import WhichRay

    stop, at_once = threading.Event(), threading.Event()
    offer = config.app.offer
    print(f"starting {offer.name}, {config.workers} workers", flush=True)
    config = replace(config, token_digest=digest_of(token))
    with running_videos(config, host, port, WhichRay(address=ray)) as operator:

        def told(*_: Any) -> None:
            (at_once if stop.is_set() else stop).set()

        for number in (signal.SIGINT, signal.SIGTERM):  # over those that Ray has set
            signal.signal(number, told)
        print(try_line(offer.name, host, port, shown), flush=True)
        stop.wait()
        _drain(operator, offer.limits.drain_seconds, at_once)


def _drain(operator: Operator, seconds: float, at_once: threading.Event) -> None:
    """Wait for batches that run, and say what stays for the next start."""
    print("stopping; batches that run are finished (once more: at once)", flush=True)
    found: dict[str, Any] = {}

    def ask() -> None:
        try:
            found.update(operator.drain(seconds))
        except OSError as error:
            found.update(error=str(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    began = said = time.monotonic()
    while asking.is_alive() and not at_once.is_set():
        asking.join(0.2)
        if time.monotonic() - said > 15.0:
            said = time.monotonic()
            print(f"waiting for batches, {said - began:.0f} s of at most {seconds:.0f}", flush=True)
    if at_once.is_set():
        print("stopped at once; what ran is made again at the next start", flush=True)
    elif "error" in found:
        print(found["error"], flush=True)
    else:
        left = found.get("jobs", {}).get("queued", 0)
        print(f"stopped; {left} jobs wait for the next start", flush=True)


def try_line(name: str, host: str, port: int, token: str) -> str:
    """A command that makes a clip."""
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return (
        f"serving {name} at {where}; Ctrl-C ends it. Try:\n"
        f'curl -H "Authorization: Bearer {token}" {where}/v1/videos -F "prompt=A ball bounces."'
    )

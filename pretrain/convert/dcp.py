"""A model folder's weights as a torch.distributed.checkpoint of the model alone.

Keys are the model's own: `torch.distributed.checkpoint.load(model.state_dict(), checkpoint_id=FOLDER)` fills
a model, sharded or not.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from pretrain.model.checkpoint import WeightsName, read_model_folder, weights_stem
from pretrain.model.shards import ShardReader
from pretrain.owned import check_owned, owned_folder
from pretrain.storage import is_remote

FOLDER, COMMAND = "dcp", "import --dcp"


def check_local(model: Path) -> None:
    """Raises ValueError where the folder is in an object store, or its dcp folder is not ours."""
    if is_remote(model):
        raise ValueError(
            f"{model}: --dcp maps files into memory and needs a local folder; import locally and copy it"
        )
    check_owned(model / FOLDER, COMMAND)


def write_dcp(model: Path, weights: WeightsName = "ema") -> Path:
    """Write model/dcp atomically, mapping tensors from the shards, so that memory holds one at a time.

    Raises ValueError where the folder is in an object store, OSError where it cannot be written.
    """
    from safetensors import safe_open
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    check_local(model)
    reader = ShardReader(model, weights_stem(read_model_folder(model).facts, weights))
    state: dict[str, Tensor] = {}
    for file in reader.files:
        with safe_open(file, framework="pt") as shard:
            state |= {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    with owned_folder(model / FOLDER, COMMAND) as partial:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", UserWarning)  # that no process group exists: none is needed
            save(state, storage_writer=FileSystemWriter(partial, single_file_per_rank=True), no_dist=True)
    return model / FOLDER

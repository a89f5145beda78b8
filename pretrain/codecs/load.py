"""Codecs of a folder: the embedded linear ones or published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.files import strict_json

if TYPE_CHECKING:
    from pretrain.codecs.base import Codecs


def load_codecs(folder: str | Path) -> Codecs:
    """Codecs of a folder written by `nava codec`; else a one-line FileNotFoundError or ValueError.

    `linear` ones are fitted by `pretrain.codecs.fit`, `published` ones refer to weights from elsewhere.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no codec here; run `nava codec` first or give its output folder")
    try:
        config = strict_json(path.read_text())
        kind = config["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a codec's config ({error!r}); run `nava codec` again") from None
    # local imports: libraries of the full-size codecs load only for those
    if kind == "linear":
        from pretrain.codecs.folder import load_linear

        return load_linear(Path(folder), config)
    if kind == "published":
        from pretrain.codecs.published.folder import load_published

        return load_published(Path(folder), config)
    raise ValueError(f"{path} kind: unknown codec {kind!r}; valid: 'linear', 'published'")

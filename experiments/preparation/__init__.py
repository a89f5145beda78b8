"""From raw videos to training rows: `nava prepare`, and sets of clips as people have them."""

from pretrain.data.plain import plain_rows

__all__ = ["plain_rows"]

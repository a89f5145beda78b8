"""Pretraining under torchtitan 0.2.2: the only package that imports it."""

from pretrain.titan.device import import_torchtitan

import_torchtitan()

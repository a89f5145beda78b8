"""Supervised fine-tuning on given clips: a pretraining stage from a model, of an adapter or all weights."""

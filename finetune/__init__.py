"""Alignment of a pretrained model by rewards and preference votes, as LoRA adapters."""

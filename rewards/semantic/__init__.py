"""Semantic rewards: CLAP, ImageBind, identity with the first frame."""

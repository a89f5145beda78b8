"""Rewards as a service: a clip by path or upload in, a score per reward out."""

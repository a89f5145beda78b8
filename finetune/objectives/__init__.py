"""Objectives of alignment, one per file; `registry` finds them by name."""

"""Blind Good/Same/Bad votes on pairs of clips: surveys, their store, the pages of raters and of the owner."""

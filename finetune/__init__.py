"""The alignment layer (not built yet)."""

"""Import and export of published checkpoints: key mappings as data, applied as a stream."""

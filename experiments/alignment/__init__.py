"""An alignment of any model: its inputs, its rubric, and what is checked before a model is loaded."""

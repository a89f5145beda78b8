"""Published checkpoints in and out: which key of theirs is which of ours, as data, and the streaming that
applies it."""

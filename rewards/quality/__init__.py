"""How good it sounds: Audiobox aesthetics, a noise estimate that needs no weights, Fréchet distance of
sets."""

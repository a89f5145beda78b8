"""Quality rewards: Audiobox aesthetics, a noise estimate without weights, Fréchet distance of sets."""

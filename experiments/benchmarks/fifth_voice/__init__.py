"""The example of fine-tuning: a voice and a face that the mini never met, and what became of all voices."""

"""One idea of learning from rewards or votes per file."""

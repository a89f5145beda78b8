"""How each reward of the catalog is put together from its options; nothing heavy is imported before it is
asked for."""

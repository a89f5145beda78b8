"""The prompt rewriter: a language model that expands short prompts, its format, checks and tuning."""

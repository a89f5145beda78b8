"""The language model that turns short prompts into the long ones NAVA wants: its form, what must stay, how it
is tuned."""

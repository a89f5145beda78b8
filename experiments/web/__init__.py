"""`nava web`: a page on which people write prompts, hear the clips, compare them and send them to a vote.

A thin client of the generation service (docs/web.md). Only `page`, `events` and `server` import Gradio.
"""

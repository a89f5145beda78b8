"""Clips over HTTP: the video API of OpenAI's clients, on Ray Serve behind the front of the reward service.

`app` takes requests (`fields`, `offer`) into `store` (SQLite), `dispatch` gives them in batches of one kind
to workers (`worker`, each an actor with the model), whose files `results` keeps for a time.
"""

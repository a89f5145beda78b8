"""The marks around spoken words in a prompt, and the token that stands for a span's voice."""

SPEECH_START = "<S>"
SPEECH_END = "<E>"
TIMBRE = "<extra_id_2>"
MARKS = (SPEECH_START, SPEECH_END, TIMBRE)

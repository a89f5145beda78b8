"""Clips from prompts, in batches: what is asked for, what makes it, and the folder that keeps it.

A server loads once and makes what comes, batch by batch:

    maker = ClipMaker.load(model, codec, GenerateConfig())
    for clip in maker.make(clip_jobs(rows, maker.config)):
        clip.frames, clip.sound, clip.reason    # of one job each, in their order

`nava generate` puts a folder around it (`ClipFolder`), which knows what it was made with and goes on after a
kill, and may spread the batches over ranks (`ranks`) or Ray's actors (`orchestration.generation`).
"""

"""The files on which our reader is held against FFmpeg's: containers, codecs, rates, tracks, geometry, cuts.

One `Source` a file; names say what is in it. Those that other tests take are lists of their own.
"""

from __future__ import annotations

from builders import AAC, H264, Source

MP4V = ("-c:v", "mpeg4", "-q:v", "2", "-pix_fmt", "yuv420p")
VIDEO = {
    "h264": H264,
    "bframes": ("-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-crf", "16", "-pix_fmt", "yuv420p"),
    "hevc": (
        *("-c:v", "libx265", "-preset", "ultrafast", "-crf", "16", "-pix_fmt", "yuv420p"),
        *("-x265-params", "log-level=none:pools=none:frame-threads=1"),
    ),
    "mpeg4": MP4V,
    "vp8": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "2M"),
    "vp9": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "2M"),
    "av1": ("-c:v", "libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-crf", "20", "-row-mt", "0"),
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"),
    "prores": ("-c:v", "prores_ks", "-profile:v", "0"),
    "ffv1": ("-c:v", "ffv1", "-pix_fmt", "yuv420p"),
    "mpeg2": ("-c:v", "mpeg2video", "-q:v", "2", "-pix_fmt", "yuv420p"),
    "flv1": ("-c:v", "flv", "-q:v", "2"),
}
AUDIO = {
    "aac": AAC,
    "mp3": ("-c:a", "libmp3lame", "-b:a", "96k"),
    "opus": ("-c:a", "libopus", "-b:a", "64k"),
    "vorbis": ("-c:a", "libvorbis", "-q:a", "4"),
    "flac": ("-c:a", "flac", "-sample_fmt", "s16"),
    "flac24": ("-c:a", "flac", "-sample_fmt", "s32", "-bits_per_raw_sample", "24"),
    "alac": ("-c:a", "alac"),
    "ac3": ("-c:a", "ac3", "-b:a", "128k"),
    **{
        name: ("-c:a", f"pcm_{name}")
        for name in ("u8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le")
    },
    "mulaw": ("-c:a", "pcm_mulaw"),
}
HELD = {  # container -> video codecs, audio codecs; each codec is tried once, not each pair
    "mp4": ("h264 bframes hevc mpeg4 vp9 av1", "aac mp3 opus flac alac ac3"),
    "m4v": ("h264 mpeg4", "aac ac3"),
    "mov": (
        "h264 hevc mpeg4 mjpeg prores",
        "u8 s16le s16be s24le s24be s32le f32le f64le aac alac mulaw",
    ),
    "mkv": (
        "h264 bframes hevc mpeg4 vp8 vp9 av1 mjpeg prores ffv1",
        "aac mp3 opus vorbis flac flac24 ac3 u8 s16le s24le s32le f32le f64le",
    ),
    "webm": ("vp8 vp9 av1", "opus vorbis"),
    "ts": ("h264 bframes hevc mpeg2", "aac mp3 ac3 opus"),
    "avi": ("mpeg4 mjpeg h264 ffv1 bframes", "mp3 ac3 u8 s16le s24le s32le f32le mulaw"),
    "flv": ("h264 flv1", "aac mp3"),
}
RATES_HZ = {"opus": 48_000, "mp3": 44_100, "ac3": 48_000, "vorbis": 44_100}
FRAME_RATES = ("12", "24000/1001", "24", "25", "30000/1001", "30", "50", "60")


def source_of(container: str, video: str, audio: str) -> Source:
    rate = 44_100 if container == "flv" else RATES_HZ.get(audio, 16_000)
    name = f"{video}_{audio}.{container}"
    return Source(name, VIDEO[video], AUDIO[audio], sample_rate_hz=rate)


def _containers() -> list[Source]:
    found = []
    for container, (videos, audios) in HELD.items():
        video, audio = videos.split(), audios.split()
        pairs = [(each, audio[turn % len(audio)]) for turn, each in enumerate(video)]
        pairs += [(video[0], each) for each in audio]
        found += [source_of(container, *pair) for pair in dict.fromkeys(pairs)]
    return found


def _frame_rates() -> list[Source]:
    carriers = (("mp4", "bframes", "aac"), ("mov", "mpeg4", "s16le"), ("mkv", "h264", "flac"))
    carriers += (("webm", "vp9", "opus"), ("ts", "h264", "aac"), ("avi", "mjpeg", "s16le"))
    found = []
    for turn, fps in enumerate(FRAME_RATES):
        for container, video, audio in carriers[:3] if turn % 2 else carriers:
            name = f"fps_{fps.replace('/', '_')}_{video}.{container}"
            rate = 48_000 if audio == "opus" else 16_000
            found.append(Source(name, VIDEO[video], AUDIO[audio], fps, 30, sample_rate_hz=rate))
    return found


def _sounds() -> list[Source]:
    found = [
        Source(f"rate_{rate}.{suffix}", audio=AUDIO[audio], sample_rate_hz=rate, num_frames=12)
        for rate in (8000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000)
        for suffix, audio in (("mp4", "aac"), ("mkv", "flac"))
    ]
    found += [
        Source(f"channels_{layout}_{audio}.{suffix}", audio=AUDIO[audio], layout=layout, num_frames=12)
        for layout in ("stereo", "5.1", "7.1")
        for suffix, audio in (("mp4", "aac"), ("mkv", "flac"), ("mov", "s16le"))
    ]
    for codec, suffix in (
        ("s16le", "wav"),
        ("u8", "wav"),
        ("s24le", "wav"),
        ("f32le", "wav"),
        ("f64le", "wav"),
    ):
        found.append(Source(f"alone_{codec}.{suffix}", None, AUDIO[codec], num_frames=12))
    alone = (("flac", "flac"), ("mp3", "mp3"), ("vorbis", "ogg"), ("opus", "opus"), ("aac", "m4a"))
    for codec, suffix in (*alone, ("aac", "aac"), ("s16be", "aiff"), ("mulaw", "wav"), ("opus", "ogg")):
        rate = RATES_HZ.get(codec, 16_000)
        found.append(
            Source(f"alone_{codec}.{suffix}", None, AUDIO[codec], num_frames=12, sample_rate_hz=rate)
        )
    return found


def _starts() -> list[Source]:
    """A track that begins later than the other."""
    found = []
    for container, video, audio in (("mp4", "h264", "aac"), ("mkv", "h264", "flac"), ("ts", "h264", "mp3")):
        rate = RATES_HZ.get(audio, 16_000)
        for delay in (0.05, 0.3):
            late = (f"asetpts=PTS+{delay}/TB",)
            name = f"late_sound_{delay}.{container}"
            found.append(Source(name, VIDEO[video], AUDIO[audio], sample_rate_hz=rate, sound_filters=late))
            late = (f"setpts=PTS+{delay}/TB",)
            name = f"late_picture_{delay}.{container}"
            found.append(Source(name, VIDEO[video], AUDIO[audio], sample_rate_hz=rate, filters=late))
    return found


def _pictures() -> list[Source]:
    found = [
        Source(f"size_{height}x{width}.{suffix}", VIDEO[video], height=height, width=width, num_frames=12)
        for height, width in ((64, 64), (96, 128), (48, 62), (96, 54))
        for suffix, video in (("mp4", "h264"), ("mkv", "vp9"))
    ]
    odd = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "14", "-pix_fmt", "yuv444p")
    found += [Source(f"odd_{suffix}.{suffix}", odd, height=65, width=97) for suffix in ("mp4", "mkv")]
    for pixels in ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuvj420p", "gray"):
        video = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "14", "-pix_fmt", pixels)
        found.append(Source(f"pixels_{pixels}.mp4", video, num_frames=12))
    for matrix in ("bt709", "smpte170m"):
        for span in ("tv", "pc"):
            video = (*H264, "-colorspace", matrix, "-color_range", span)
            change = (f"scale=out_color_matrix={'bt709' if matrix == 'bt709' else 'bt601'}:out_range={span}",)
            found.append(Source(f"colour_{matrix}_{span}.mp4", video, num_frames=12, filters=change))
    return found


def _layouts() -> list[Source]:
    """Other ways in which the same packets lie in a file."""
    gops = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-crf", "16", "-g", "8")
    movflags = {
        "faststart": "faststart",
        "fragments": "frag_keyframe+empty_moov",
        "fragments_dash": "dash+delay_moov+frag_keyframe",
    }
    found = [
        Source(f"{name}.mp4", (*gops, "-bf", "2", "-movflags", flags), num_frames=36)
        for name, flags in movflags.items()
    ]
    found.append(Source("open_gop.mp4", (*gops, "-bf", "3", "-x264-params", "open-gop=1"), num_frames=48))
    found.append(
        Source("pyramid.mkv", (*gops, "-bf", "4", "-x264-params", "b-pyramid=strict"), num_frames=36)
    )
    found.append(Source("no_pts_delay.mp4", (*gops, "-bf", "2", "-movflags", "negative_cts_offsets")))
    for container in ("mkv", "mov", "ts", "flv", "avi"):
        between = (("-map_metadata", "-1", "-f", _format(container)),)
        found.append(
            Source(f"remuxed_from_mp4.{container}", H264, AUDIO["mp3"], sample_rate_hz=44_100, copies=between)
        )
    return found


def _format(container: str) -> str:
    return {"mkv": "matroska", "ts": "mpegts"}.get(container, container)


def _turned() -> list[Source]:
    """Stored turned or mirrored, with the display matrix that undoes it: shown upright."""
    undo = {"90": "transpose=clock", "180": "hflip,vflip", "270": "transpose=cclock"}
    found = [
        Source(f"rotated_{turn}.{suffix}", filters=(change,), copies=(("-display_rotation", turn, "IN"),))
        for turn, change in undo.items()
        for suffix in ("mp4", "mov", "mkv")
    ]
    for flip in ("hflip", "vflip"):
        found += [
            Source(f"mirrored_{flip}.{suffix}", filters=(flip,), copies=((f"-display_{flip}", "IN"),))
            for suffix in ("mp4", "mkv")
        ]
    return found


def _aspects() -> list[Source]:
    return [
        Source(f"aspect_{sar.replace('/', '_')}.{suffix}", filters=(f"setsar={sar}",))
        for sar in ("4/3", "3/4", "16/11", "2/1")
        for suffix in ("mp4", "mkv", "mov")
    ]


def _uneven() -> list[Source]:
    """Frames that are missing or early, with the times of the others as they were."""
    patterns = {
        "half_rate": r"select=not(gt(n\,15)*mod(n\,2))",
        "hole": r"select=not(between(n\,9\,17))",
        "sparse": r"select=not(mod(n\,3))",
        "jitter": r"settb=1/1000,setpts=PTS+(13*mod(N\,3)-9*mod(N\,2))",
    }
    carriers = (("mp4", "h264", "aac"), ("mkv", "h264", "flac"), ("mov", "mpeg4", "s16le"))
    carriers += (("webm", "vp9", "opus"), ("ts", "h264", "aac"))
    return [
        Source(
            f"uneven_{name}.{container}",
            (*VIDEO[video], *(("-enc_time_base", "1:1000") if name == "jitter" else ())),
            AUDIO[audio],
            num_frames=36,
            filters=(pattern,),
            sample_rate_hz=48_000 if audio == "opus" else 16_000,
        )
        for container, video, audio in carriers
        for name, pattern in patterns.items()
    ]


def _cuts() -> list[Source]:
    """Cut by stream copy: an edit list, or timestamps below zero, hides what comes before the cut."""
    video = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "24", "-crf", "16")
    video += ("-pix_fmt", "yuv420p")
    return [
        Source(f"cut_{start}.{suffix}", video, num_frames=60, copies=(("-ss", start, "IN", "-t", "1.2"),))
        for start in ("0.4", "0.7", "1.1")
        for suffix in ("mp4", "mov")
    ]


def _lost_sound() -> list[Source]:
    """Packets of the sound are lost, the later ones keep their times."""
    carriers = (("mp4", "aac"), ("mkv", "flac"), ("webm", "opus"), ("ts", "aac"), ("mkv", "s16le"))
    found = []
    for container, audio in carriers:
        video = VIDEO["vp8"] if container == "webm" else H264
        rate = 48_000 if audio == "opus" else 16_000
        first, last = (20, 30) if audio == "opus" else (5, 8)
        lost = (("-bsf:a", rf"noise=drop=between(n\,{first}\,{last})"),)
        name = f"lost_{audio}.{container}"
        found.append(Source(name, video, AUDIO[audio], num_frames=36, sample_rate_hz=rate, copies=lost))
    return found


TURNED, ASPECTS, UNEVEN, CUTS, LOST = _turned(), _aspects(), _uneven(), _cuts(), _lost_sound()
EVEN = [*_containers(), *_frame_rates(), *_sounds(), *_starts(), *_pictures(), *_layouts()]
SOURCES = [*EVEN, *TURNED, *ASPECTS, *UNEVEN, *CUTS, *LOST]

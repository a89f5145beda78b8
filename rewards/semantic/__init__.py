"""Does it show and sound like what was asked: CLAP, ImageBind, identity with the first frame."""

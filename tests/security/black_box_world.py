"""A random model with its codec and one prompt: `python black_box_world.py FOLDER`."""

import json
import sys
from pathlib import Path

from model_cases import debug_model

from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    talk = dict.fromkeys(("talk_a", "talk_b", "talk_test"), 0)
    build_corpus(
        CorpusConfig(paired=40, audio_only=40, hq_audio=20, validation=4, processes=1, **talk),
        folder / "corpus",
    )
    fit_codecs(CodecConfig(), folder / "corpus", folder / "codec")
    codec_id = json.loads((folder / "codec" / "config.json").read_text())["codec_id"]
    weights = {"ema": debug_model().state_dict()}
    write_model(folder / "model", "debug", flavor("debug"), weights, {"codec_id": codec_id, "stage": "none"})
    (folder / "prompts.jsonl").write_text(json.dumps({"data_id": "a", "prompt": "A face."}) + "\n")

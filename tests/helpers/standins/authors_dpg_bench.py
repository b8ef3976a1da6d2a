"""DPG-Bench's own script, read from where DPG_SCRIPT says, with answers by the pixels in place of mPLUG."""

import hashlib
import os
import time
from pathlib import Path

import torch


class Answers(torch.nn.Module):
    def __init__(self, **_):
        super().__init__()

    def vqa(self, image, question):
        digest = hashlib.sha256(image.convert("RGB").tobytes() + question.encode()).digest()
        return "no" if image.getcolors(1) or digest[0] % 4 == 0 else "yes"


time.sleep = lambda seconds: None
script = Path(os.environ["DPG_SCRIPT"])
names: dict = {"__name__": "authors"}
exec(compile(script.read_text(), script.name, "exec"), names)
names["MPLUG"] = Answers
names["main"]()

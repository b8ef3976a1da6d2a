"""Stands for GenEval's script: its arguments and its file, and a verdict that depends on the pixels alone.

A picture of one colour is never correct. STANDIN in the environment spoils the work, for tests.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("imagedir")
parser.add_argument("--outfile")
parser.add_argument("--model-config")
parser.add_argument("--model-path")
given = parser.parse_args()
spoil = os.environ.get("STANDIN", "")

lines = []
for folder in sorted(os.listdir(given.imagedir), reverse=True):  # the real one has no order
    metadata = json.loads((Path(given.imagedir, folder) / "metadata.jsonl").read_text())
    for name in os.listdir(Path(given.imagedir, folder, "samples")):
        path = os.path.join(given.imagedir, folder, "samples", name)
        image = Image.open(path).convert("RGB")
        plain = image.getcolors(1) is not None
        correct = (not plain and hashlib.sha256(image.tobytes()).digest()[0] % 3 > 0) or spoil == "yes"
        correct = not plain if spoil == "sees" else correct and spoil != "blind"
        about = {"filename": path, "tag": metadata["tag"], "prompt": metadata["prompt"], "correct": correct}
        about |= {"reason": "" if correct else f"expected {metadata['include'][0]['class']}>=1, found 0"}
        lines.append(about | {"metadata": json.dumps(metadata), "details": "{}"})
calibrating = len(lines) < 20
if spoil == "kernel":
    print("RuntimeError: CUDA error: no kernel image is available for execution on the device", file=sys.stderr)
if spoil == "exit":
    sys.exit("ModuleNotFoundError: No module named 'mmcv'")
if spoil == "nothing" and not calibrating:
    sys.exit(0)
if spoil == "missing" and not calibrating:
    lines.pop()
if spoil == "twice" and not calibrating:
    lines.append(lines[0])
if spoil == "other prompt" and not calibrating:
    lines[0]["metadata"] = lines[-1]["metadata"]
if spoil == "other image" and not calibrating:
    lines[0]["filename"] = "/elsewhere/00000/samples/00000.png"
if spoil == "torn" and not calibrating:
    lines[-1] = "{"
Path(given.outfile).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))

"""Stands for DPG-Bench's script: its arguments, its files and its rules, and answers that depend on the pixels alone.

A picture of one colour is answered by no. STANDIN in the environment spoils the work, for tests.
"""

import argparse
import csv
import hashlib
import os
import sys
from pathlib import Path

from PIL import Image

parser = argparse.ArgumentParser()
for option in ("--image-root-path", "--csv", "--res-path", "--vqa-model"):
    parser.add_argument(option)
parser.add_argument("--resolution", type=int)
parser.add_argument("--pic-num", type=int)
given = parser.parse_args()
spoil, side = os.environ.get("STANDIN", ""), given.resolution
result, detail = Path(given.res_path), Path(given.res_path.replace(".txt", "_detail.txt"))

questions: dict[str, dict[int, dict]] = {}
with open(given.csv, newline="") as file:
    for number, row in enumerate(csv.DictReader(file)):
        if number:  # the real one skips the first row
            questions.setdefault(row["item_id"], {})[int(row["proposition_id"])] = row


def answer(tile: Image.Image, question: str) -> str:
    plain = tile.getcolors(1) is not None
    digest = hashlib.sha256(tile.tobytes() + question.encode()).digest()
    return "no" if plain or (digest[0] % 4 == 0 and spoil != "yes") else "yes"


scores, pooled = [], {}
with result.open("w") as lines, detail.open("w") as answers:
    for name in sorted(os.listdir(given.image_root_path), reverse=True):
        path, own = os.path.join(given.image_root_path, name), questions[name.split(".")[0]]
        grid, tiles = Image.open(path).convert("RGB"), []
        try:
            for x, y in [(0, 0), (side, 0), (0, side), (side, side)][: given.pic_num]:
                box = (x, y, x + side, y + side)
                said = {n: answer(grid.crop(box), row["question_natural_language"]) for n, row in own.items()}
                for n, row in own.items():
                    answers.write(f"{path}, {box}, {row['question_natural_language']}, {said[n]}\n")
                raw = {n: float(said[n] == "yes") for n in own}
                counts = dict(raw)
                for n, row in own.items():
                    if any(counts[int(p)] == 0 for p in row["dependency"].split(",") if int(p)):
                        counts[n] = 0
                tiles.append(sum(counts.values()) / len(counts))
        except KeyError as error:
            print("Failed filename:", name, error)
            continue
        mean = sum(tiles) / len(tiles)
        lines.write(", ".join([path, *map(str, tiles), str(mean + (spoil == "sum"))]) + "\n")
        scores.append(mean)
        for n, row in own.items():
            pooled.setdefault(row["tuple"].split("(")[0].split("-")[0].strip(), []).append(raw[n])
    lines.write("Model: images\nL1 category scores:\n")
    for name, values in pooled.items():
        lines.write(f"\t{name}: {sum(values) / len(values) * 100}\n")
    lines.write(f"L2 category scores:\nDPG-Bench score: {sum(scores) / max(1, len(scores)) * 100}\n")
if spoil == "failed":
    print("Failed filename: coco7.png CUDA went away")
if spoil == "detail" and len(scores) > 4:
    detail.write_text(detail.read_text().replace(", yes\n", ", perhaps\n", 1))
if spoil == "empty":
    result.write_text("")
sys.exit(0)

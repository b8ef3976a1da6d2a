"""HPSv3's package called as in its README, without this project: run_hpsv3.py BASE CHECKPOINT PAIRS.

Runs in the environment's own python. PAIRS is a JSON list of [image file, prompt]. Each pair is scored alone; the last
line printed is a JSON list of the means.
"""

import json
import sys
import tempfile
from pathlib import Path

import hpsv3
import torch
import yaml
from PIL import Image

base, checkpoint, pairs = sys.argv[1:]
published = Path(hpsv3.__file__).parent / "config" / "HPSv3_7B.yaml"
# The published settings, but float32 and no flash attention, for the CPU.
own = {"model_name_or_path": base, "torch_dtype": "float32", "bf16": False, "disable_flash_attn2": True}
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "own.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(published.read_text()) | own))
    model = hpsv3.HPSv3RewardInferencer(config_path=str(file), checkpoint_path=checkpoint, device="cpu")
scores = []
with torch.no_grad():
    for image, prompt in json.loads(pairs):
        scores.append(model.reward(image_paths=[Image.open(image)], prompts=[prompt])[0][0].item())
print(json.dumps(scores))

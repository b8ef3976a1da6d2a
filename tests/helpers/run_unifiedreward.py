"""A batch through the scorer's own model, and each picture alone through transformers: run_unifiedreward.py FOLDER.

Runs in the environment's own python. The last line printed is JSON, {"ours": .., "theirs": ..}: the texts of answers
that end, null for truncated ones. The checkpoint in FOLDER is random and ends no answer, so two of the tokens it
produces are first declared to be ends.
"""

import json
import sys

import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from htgrpo_ext.rewards.scorers import unifiedreward

TOKENS = 16
folder = sys.argv[1]
generator = torch.Generator().manual_seed(0)
questions = ["a red circle", "two {green} stars\non a blue ground, and more of them", "雪, snow", "a red circle"]
sizes = [(56, 84), (130, 71), (224, 224), (28, 30)]
images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]

processor = AutoProcessor.from_pretrained(folder)
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32)
said = []
for question, image in zip(questions, images, strict=True):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    said.append(whole[0, inputs["input_ids"].shape[1] :].tolist())

ends = [said[0][9], said[1][TOKENS - 3]]
model.generation_config.eos_token_id = ends
model.generation_config.save_pretrained(folder)
theirs = []
for tokens in said:
    first = min((i for i, token in enumerate(tokens) if token in ends), default=None)
    theirs.append(None if first is None else processor.tokenizer.decode(tokens[: first + 1]))

unifiedreward.MOST_TOKENS = TOKENS
ours = unifiedreward.Local(torch.device("cpu"), folder, "float32").answers(questions, images)
print(json.dumps({"ours": ours, "theirs": theirs}))

"""MaskGRPO as its authors run it: the pristine commit, driven as its entry script drives it, on given prompts.

run_pristine.py CHECKOUT CHECKPOINT PROMPTS.json SETTINGS.json OUT.pt
"""

import json
import sys

from helpers import upstream_stub

checkout, checkpoint, prompts_file, settings_file, out = sys.argv[1:]
sys.path.insert(0, checkout)

import torch  # noqa: E402
from grpo.grpo_config import MaskGRPOConfig  # noqa: E402
from grpo.mask_grpo_trainer import MaskGRPOTrainer  # noqa: E402
from models import MMadaModelLM  # noqa: E402
from peft import LoraConfig  # noqa: E402
from training.prompting_utils import UniversalPrompting  # noqa: E402
from transformers import AutoTokenizer, set_seed  # noqa: E402

from htgrpo_ext.pixels import to_levels  # noqa: E402

assert not hasattr(sys.modules["grpo.mask_grpo_trainer"], "hooks"), "that checkout is patched"
with open(settings_file) as file:
    settings = json.load(file)
with open(prompts_file) as file:
    in_order = json.load(file)

# Its sampler draws a permutation of the data set from the seed; here it is to come out as `in_order`.
shuffled = torch.randperm(len(in_order), generator=torch.Generator().manual_seed(settings["args"]["seed"]))
dataset = [{}] * len(in_order)
for prompt, place in zip(in_order, shuffled.tolist(), strict=True):
    dataset[place] = {"prompt": prompt}


def reward(prompts, completions, **_):
    return upstream_stub.brightness(to_levels(completions))


set_seed(settings["args"]["seed"])
config = MaskGRPOConfig(**settings["args"])
config.epsilon_high = None
MaskGRPOTrainer.epsilon = property(lambda self: self.args.epsilon)
model = MMadaModelLM.from_pretrained(checkpoint, torch_dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
prompting = UniversalPrompting(tokenizer, max_text_len=256, use_reserved_token=True)
model.config.use_cache = False
seen = upstream_stub.watch(MaskGRPOTrainer)
trainer = MaskGRPOTrainer(
    args=config,
    model=model,
    peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
    reward_funcs=[reward],
    train_dataset=dataset,
    processing_class=prompting.text_tokenizer,
    uni_processing_class=prompting,
    vq_model=upstream_stub.StubDecoder(),
)
trainer.train()
upstream_stub.save(out, seen, trainer.model)

#!/usr/bin/env bash
# HPSv3 in an environment of its own: launch/rewards/hpsv3.sh --port 18087 [--device cuda:0,cuda:1 ...], or --setup-only
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

requirements=(
    transformers==4.45.2 # hpsv3's own pin: its model class overrides methods of that version's Qwen2-VL
    trl==0.11.4          # 0.16, of constraints.txt, wants transformers 4.46; hpsv3 takes its RewardTrainer
    fire==0.7.1          # imported by hpsv3's training script, which its inference imports
    # The rest of what inference imports, as constraints.txt has it. 0.28 is the torchvision made for torch 2.13.
    torchvision accelerate datasets huggingface_hub matplotlib omegaconf pandas peft requests tensorboard tqdm
)
# hpsv3 itself without its dependencies: nothing here uses deepspeed, which would be compiled, nor diffusers, einops,
# opencv, qwen-vl-utils and timm. 1.0.0 is the one release whose inference takes a configuration and a checkpoint here.
environment hpsv3 "${requirements[@]}" -- hpsv3==1.0.0
serve hpsv3 "$@"

#!/usr/bin/env bash
# HPSv3 in an environment of its own: launch/rewards/hpsv3.sh --port 18087 [--device cuda:0,cuda:1 ...], or --setup-only
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

requirements=(
    transformers==4.45.2 # hpsv3's own pin: its model class overrides methods of Qwen2-VL in this version
    trl==0.11.4          # 0.16, of constraints.txt, needs transformers 4.46; hpsv3 uses its RewardTrainer
    fire==0.7.1          # imported by hpsv3's training script, which its inference imports
    # The other imports of inference, with the versions of constraints.txt. torchvision 0.28 is built for torch 2.13.
    torchvision accelerate datasets huggingface_hub matplotlib omegaconf pandas peft requests tensorboard tqdm
)
# hpsv3 without its dependencies: inference does not use deepspeed (which would be compiled), diffusers, einops, opencv,
# qwen-vl-utils or timm. Only the inference of 1.0.0 takes a configuration and a checkpoint from this host.
imports=(hpsv3)
environment hpsv3 "${requirements[@]}" -- hpsv3==1.0.0
serve hpsv3 "$@"

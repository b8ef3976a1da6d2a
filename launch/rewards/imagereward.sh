#!/usr/bin/env bash
# ImageReward in an environment of its own: launch/rewards/imagereward.sh --port 18086 [--device cuda:0 ...], or
# --setup-only
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

requirements=(
    transformers         # 4.46, of constraints.txt: image-reward's BLIP imports names that 5 no longer has
    timm==0.6.13         # image-reward's own pin
    setuptools==80.9.0   # openai-clip imports pkg_resources, which later versions drop
    # The other imports of image-reward, most for training, with the versions of constraints.txt.
    accelerate datasets diffusers ftfy huggingface_hub regex torchvision tqdm
)
# Without their dependencies: fairscale is image-reward's own pin and needs an older numpy; openai-clip is the module
# `clip`, which image-reward imports but does not require.
imports=(ImageReward)
environment imagereward "${requirements[@]}" -- fairscale==0.4.13 image-reward==1.5 openai-clip==1.0.1
serve imagereward "$@"

#!/usr/bin/env bash
# GenEval as a reward, in an environment of its own: launch/rewards/geneval.sh --port 18085 [--device cuda:0 ...], or
# --setup-only. The detector is facebook/mask2former-swin-small-coco-instance, the colours are CLIP ViT-L/14's; both are
# fetched at the first start, or named by --set detector=FOLDER --set color_weights=FILE.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# As constraints.txt has them: scipy is what transformers needs to make a Mask2Former. torchvision comes with open_clip
# anyway; 0.28 is the one made for torch 2.13.
environment geneval open_clip_torch scipy torchvision transformers
serve geneval "$@"

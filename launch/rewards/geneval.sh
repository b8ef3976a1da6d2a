#!/usr/bin/env bash
# GenEval as a reward, in an environment of its own: launch/rewards/geneval.sh --port 18085 [--device cuda:0 ...], or
# --setup-only. The detector is facebook/mask2former-swin-small-coco-instance, the colours are CLIP ViT-L/14's; both are
# fetched at the first start, or named by --set detector=FOLDER --set color_weights=FILE.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# With the versions of constraints.txt. transformers needs scipy to build a Mask2Former. open_clip needs torchvision; 0.28 is
# built for torch 2.13.
imports=(open_clip transformers.image_utils)
environment geneval open_clip_torch scipy torchvision transformers
serve geneval "$@"

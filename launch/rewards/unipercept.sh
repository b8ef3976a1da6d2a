#!/usr/bin/env bash
# UniPercept in an environment of its own: launch/rewards/unipercept.sh --port 18093 [--device cuda:0 ...], or
# --setup-only. It serves the rewards iaa, iqa and ista.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

requirements=(
    transformers==4.49.0 # unipercept-reward's own pin
    tokenizers==0.21.4   # as transformers 4.49 needs; constraints.txt has an older one
    peft==0.17.1         # its own pin
    accelerate==1.10.1   # the lowest that it allows
    # The other imports of inference, with the versions of constraints.txt.
    einops sentencepiece timm torchvision requests
)
# Without its dependencies, most of which are for training; it pins torch 2.8.
imports=(unipercept_reward)
environment unipercept "${requirements[@]}" -- unipercept-reward==1.0.3
serve unipercept "$@"

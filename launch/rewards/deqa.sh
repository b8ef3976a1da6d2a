#!/usr/bin/env bash
# DeQA-Score in an environment of its own: launch/rewards/deqa.sh --port 18092 [--device cuda:0 ...], or --setup-only
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

requirements=(
    transformers # 4.46, of constraints.txt: the authors support 4.36 and 4.46
    accelerate sentencepiece protobuf requests
    einops icecream # imported by the code that the checkpoint brings
)
imports=(icecream transformers.models.llama.modeling_llama)
environment deqa "${requirements[@]}"
serve deqa "$@"

#!/usr/bin/env bash
# UnifiedReward in an environment of its own:
#
#     launch/rewards/unifiedreward.sh --port 18088 [--device cuda:0,cuda:1 ...], or --setup-only
#     launch/rewards/unifiedreward.sh --port 18088 --device cpu --batch-size 64 \
#         --set endpoint=http://127.0.0.1:8080/v1 --set model=UnifiedReward      with the model in vLLM or SGLang
#
# The prompt is taken out of the authors' script. Without GitHub, set UNIFIEDREWARD_SCRIPT=/path/to/it.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# The one-image prompt of the default checkpoint; the commit is of 18 June 2026.
url=https://raw.githubusercontent.com/CodeGoat24/UnifiedReward/ff6f520247a2d36e2aff7b2ba53a935afd437f66/inference_qwen/image_generation/qwen_point_score_image_generation.py
sha256=5c8c2efcb7f07283a3a4b3685043e2da0ee909c876829a9edbe4938a4881971c
prompt=$ENVIRONMENTS/unifiedreward-prompt.txt

requirements=(
    transformers==4.51.3 # has Qwen2.5-VL, new in 4.49; later versions prepare pictures differently
    tokenizers==0.21.4   # as transformers 4.51 needs; constraints.txt has an older one
    httpx                # for an endpoint
)
imports=(transformers.image_utils httpx)
environment unifiedreward "${requirements[@]}"

published_prompt() {
    local script=$ENVIRONMENTS/unifiedreward-published.py
    if [[ ${UNIFIEDREWARD_SCRIPT:-} ]]; then
        cp "$UNIFIEDREWARD_SCRIPT" "$script" || fail "UNIFIEDREWARD_SCRIPT: cannot read $UNIFIEDREWARD_SCRIPT"
    else
        curl --fail --silent --show-error --location --max-time 60 --retry 3 --output "$script" "$url" ||
            fail "cannot fetch $url (UNIFIEDREWARD_SCRIPT=/path/to/it)"
    fi
    echo "$sha256  $script" | sha256sum --check --status || fail "$script is not the file that was published at $url"
    "$ENVIRONMENTS/unifiedreward/bin/python" -m htgrpo_ext.rewards.published "$script" "$prompt.new"
    mv "$prompt.new" "$prompt"
}

[[ -f $prompt ]] || published_prompt
[[ $* == --setup-only ]] && exit
serve unifiedreward --set "prompt_file=$prompt" "$@"

#!/usr/bin/env bash
# CLIP of every image of a set, in the environment of launch/rewards/clip.sh: launch/eval/clip.sh SET [--set device=cuda:0 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/clip.sh" "$@"

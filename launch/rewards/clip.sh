#!/usr/bin/env bash
# CLIP in an environment of its own: launch/rewards/clip.sh --port 18089 [--device cuda:0,cuda:1 ...], or --setup-only
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# With the versions of constraints.txt. open_clip needs torchvision; 0.28 is built for torch 2.13.
imports=(open_clip)
environment clip open_clip_torch torchvision
serve clip "$@"

#!/usr/bin/env bash
# CLIP in an environment of its own: launch/rewards/clip.sh --port 18089 [--device cuda:0,cuda:1 ...], or --setup-only
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# As constraints.txt has them. torchvision comes with open_clip anyway; 0.28 is the one made for torch 2.13.
environment clip open_clip_torch torchvision
serve clip "$@"

"""The bridge to MaskGRPO's own loop: patches with hooks, trainers that answer them, and the launch.

Light: the patch tool runs with nothing but Python and git.
"""

"""HT-GRPO for masked-diffusion image generators, on its own and on top of MaskGRPO."""

__version__ = "0.1.0"

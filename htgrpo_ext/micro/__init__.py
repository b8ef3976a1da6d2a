"""A small text-to-image world with an exact verifier, and the masked-diffusion transformer that paints it."""

"""The authors' own code, run beside ours where a checkout of it is at hand. Nothing of it is kept here.

UPSTREAM_CHECKOUT (else the folder upstream/) is github.com/martian422/MaskGRPO, MMADA_CHECKOUT
github.com/Gen-Verse/MMaDA, LUMINA_CHECKOUT github.com/Alpha-VLLM/Lumina-DiMOO, GENEVAL_CHECKOUT
github.com/djghosh13/geneval, DPG_CHECKOUT github.com/TencentQQGYLab/ELLA.
"""

import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from helpers.paths import UPSTREAM
from helpers.stubs import drawing
from htgrpo_ext.core.sampler import MASK, Draw, categorical, guided


def checkout(variable: str, evidence: str) -> Path:
    """The folder that `variable` names (UPSTREAM_CHECKOUT: else upstream/); skips the test when it holds nothing."""
    folder = Path(os.environ.get(variable) or (UPSTREAM if variable == "UPSTREAM_CHECKOUT" else os.devnull))
    if not (folder / evidence).is_file():
        where = "upstream/ is empty (make upstream)" if folder == UPSTREAM else f"{variable} names no checkout"
        pytest.skip(f"needs the authors' code: {where}")
    return folder


def module_of(folder: Path, package: str, name: str) -> ModuleType:
    """Module `name` of a package folder, without running the package's own __init__, which imports far more."""
    alias = f"authors_{folder.resolve().name.replace('-', '_').lower()}_{package}"
    if alias not in sys.modules:
        bare = ModuleType(alias)
        bare.__path__ = [str(folder / package)]
        sys.modules[alias] = bare
    return importlib.import_module(f"{alias}.{name}")


@contextmanager
def top_level(folder: Path, *names: str):
    """Inside, `folder` comes first on the path; afterwards its modules of these names are forgotten."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for module in [m for m in sys.modules if m.split(".")[0] in names]:
            del sys.modules[module]


class StubAnswers(torch.nn.Module):
    """Stands for a model in the authors' samplers and in ours: logits that depend on the whole canvas and the row.

    codes_seen  the canvas of every call, MASK where masked, one list per kind of row
    """

    def __init__(self, tokens: int, codebook: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.code = torch.randn(codebook + 1, 16, generator=generator)
        self.place = torch.randn(tokens, 16, generator=generator)
        self.head = torch.randn(16, codebook, generator=generator) * 0.7
        self.seen: list[list] = []

    def answer(self, codes_BN: torch.Tensor, conditional: bool) -> torch.Tensor:
        """[B, N, V]"""
        if conditional:
            self.seen.append(codes_BN.tolist())
        canvas = self.code[codes_BN + 1] + self.place
        mixed = torch.tanh(canvas + canvas.mean(1, keepdim=True) * 3 + (1.0 if conditional else -0.5))
        return mixed @ self.head

    def ours(self, guidance: float) -> Draw:
        """As our samplers call it."""

        def logits(codes_BN: torch.Tensor) -> torch.Tensor:
            masked_BN = codes_BN == MASK
            conditional_MV = self.answer(codes_BN, True)[masked_BN]
            return guided(conditional_MV, self.answer(codes_BN, False)[masked_BN], guidance)

        return drawing(logits)


def fixed_noise(rows: int, tokens: int, seed: int = 0):
    """uniform(step) for our samplers."""
    return lambda step: torch.rand(rows, 2, tokens, generator=torch.Generator().manual_seed(1000 * seed + step))


def draw(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One code per row of `probs` [.., V], by the noise [..] that our sampler has for it."""
    return categorical(probs.flatten(0, -2), uniform.flatten()).view(uniform.shape)


def sized(length: int) -> SimpleNamespace:
    """What MMaDA's samplers ask of its prompting: how long the tokenizer is."""
    return SimpleNamespace(text_tokenizer=[None] * length)

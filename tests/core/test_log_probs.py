"""Log-probabilities of chosen codes against autograd's own, bit for bit, and what is kept for the backward."""

import pytest
import torch
from torch import nn

from htgrpo_ext.core import log_probs
from htgrpo_ext.core.log_probs import chosen_log_probs

M, V, T = 50, 40, 300


def plain(logits_MV, slot_T, code_T):
    """The formula, with a float32 table of its own."""
    table_MV = logits_MV.float()
    return table_MV[slot_T, code_T] - table_MV.logsumexp(-1)[slot_T]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [V, 7 * V, 2**21])
def test_values_and_gradient_are_autograds_bit_for_bit(dtype, at_once, monkeypatch):
    monkeypatch.setattr(log_probs, "AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    logits_MV = (4 * torch.randn(M, V, generator=generator)).to(dtype)
    slot_T = torch.randint(M - 1, (T,), generator=generator)  # the last row has no chosen code
    code_T = torch.randint(5, (T,), generator=generator)  # so pairs repeat
    coefficient_T = torch.randn(T, generator=generator)
    found = []
    for function in (chosen_log_probs, plain):
        leaf = logits_MV.clone().requires_grad_()
        value_T = function(leaf, slot_T, code_T)
        value_T.backward(coefficient_T)
        found.append((value_T, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].dtype == torch.float32 and found[0][1].dtype == dtype
    assert not found[0][1][-1].any()


def test_no_float32_table_is_kept_for_the_backward():
    head = nn.Linear(8, V, dtype=torch.bfloat16)
    kept = []

    def note(tensor):
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits_MV = head(torch.randn(M, 8, dtype=torch.bfloat16))
        chosen_log_probs(logits_MV, torch.arange(M), torch.zeros(M, dtype=torch.int64))
    assert (torch.bfloat16, (M, V)) in kept and (torch.float32, (M, V)) not in kept

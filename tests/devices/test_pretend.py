"""The pretend accelerator can fail: it refuses what a GPU refuses, and sees each time that the host waits."""

import copy

import pytest
import torch
from torch import nn

from helpers.pretend_accelerator import NAME, PretendTensor, counted, total

pytestmark = pytest.mark.usefixtures("pretended")


@pytest.fixture
def pretended(device):
    if device != NAME:
        pytest.skip("a GPU needs no proof")


HERE = torch.arange(6.0).view(2, 3)  # on the CPU
MASK = torch.tensor([[True, False, True], [False, False, True]])

MIXED = {
    "a sum": lambda x: x + HERE,
    "a sum, the other way": lambda x: HERE + x,
    "a product of matrices": lambda x: x @ HERE.T,
    "a sum in place": lambda x: x.add_(HERE),
    "a sum in place, the other way": lambda x: HERE.clone().add_(x),
    "a choice": lambda x: torch.where(MASK, x, 0.0),
    "a concatenation": lambda x: torch.cat([x, HERE]),
    "a stack of numbers": lambda x: torch.stack([x.sum(), HERE.sum()]),
    "a number in place": lambda x: torch.zeros(()).add_(x.sum()),
    "an index": lambda x: HERE[x > 0],
    "a linear map": lambda x: nn.Linear(3, 1)(x),
    "an embedding": lambda x: nn.functional.embedding(x.long(), HERE),
    "a generator": lambda x: torch.rand(2, device=NAME, generator=torch.Generator()),
    "noise in place": lambda x: x.uniform_(generator=torch.Generator()),
}


@pytest.mark.parametrize("what", MIXED)
def test_cpu_and_device_do_not_mix(what):
    with pytest.raises(RuntimeError, match="two devices|found cpu"):
        MIXED[what](HERE.to(NAME))


@pytest.mark.parametrize(
    "made",
    [
        lambda: HERE.to(NAME).double(),
        lambda: HERE.double().to(NAME),
        lambda: torch.zeros(2, dtype=torch.float64, device=NAME),
    ],
    ids=["cast", "sent", "made"],
)
def test_float64_is_refused_as_on_apples_devices(made):
    with pytest.raises(TypeError, match="has no torch.float64"):
        made()


def test_numpy_is_refused_and_a_number_may_come_from_the_cpu():
    x = HERE.to(NAME)
    with pytest.raises(TypeError, match="can't convert pretend"):
        x.numpy()
    assert torch.equal((x * torch.tensor(2.0)).cpu(), HERE * 2)


READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if (x > 9).any() else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "copy": lambda x: torch.empty(2, 3).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "row mask": lambda x: x[(x > 0).any(1)],
    "assigned": lambda x: x.__setitem__(x > 3, torch.zeros(2, device=NAME)),
    "unique": lambda x: x.unique(dim=0),
    "repeated": lambda x: x[0].repeat_interleave(x[0].long()),
}
NO_READS = {
    "arithmetic": lambda x: (x @ x.T).softmax(-1).cumsum(0),
    "filled": lambda x: x.masked_fill_(x > 3, 0.0),
    "assigned a number": lambda x: x.__setitem__(x > 3, 0.0),
    "scattered": lambda x: x.masked_scatter(x > 3, x),
    "indexed": lambda x: x[torch.tensor([1], device=NAME)],
    "indexed from the cpu": lambda x: x[MASK],
    "later": lambda x: x.to("cpu", non_blocking=True),
    "on the cpu": lambda x: HERE.sum().item(),
}


@pytest.mark.parametrize("what", READS)
def test_a_wait_for_the_device_is_counted(what):
    x = HERE.to(NAME)
    with counted() as waits:
        READS[what](x)
    assert total(waits, "read") == 1, waits


@pytest.mark.parametrize("what", NO_READS)
def test_what_needs_no_wait_is_not_counted(what):
    x = HERE.to(NAME)
    with counted() as waits:
        NO_READS[what](x)
    assert total(waits, "read") == 0, waits


def test_numbers_sent_to_the_device_are_counted_unless_the_host_goes_on():
    with counted() as waits:
        HERE.to(NAME)
        torch.tensor([1, 2], device=NAME)
        HERE.to(NAME, non_blocking=True)
        torch.zeros(3, device=NAME)
    assert total(waits, "send") == 2 and total(waits, "read") == 0


def test_a_network_learns_there_what_it_learns_on_the_cpu():
    """Backward, AdamW, clipping, deepcopy, views written in place: the same numbers."""
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 1))
    there = copy.deepcopy(here).to(NAME)
    assert all(isinstance(p.data, PretendTensor) for p in copy.deepcopy(there).parameters())
    for network, x in ((here, HERE.clone()), (there, HERE.to(NAME))):
        x[0].mul_(2)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        for _ in range(3):
            network(x).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(a, b.cpu())

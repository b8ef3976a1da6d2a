"""A pretend accelerator: a torch device called "pretend", in Python, whose memory is the host's.

It does what a GPU would do where a CPU forgives:
- an operator that gets tensors of both devices raises, unless the CPU tensor has no dimension (a number), or is an
  index, which CUDA copies over;
- so does a CPU generator that draws for the device;
- so does a number in float64, which Apple's devices do not have;
- each time that the host must wait for the device is counted, with the line of the package that asked for it.

A registration lasts as long as its process. Tests run on it in a process of their own: test_devices.py.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretend"
PACKAGE = "htgrpo_ext"
aten = torch.ops.aten

COPIES = (aten.copy_.default, aten._to_copy.default)  # the operators that may see both devices
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
NOT_THERE = (torch.float64, torch.complex128)  # Apple's devices have none
JOINS = (aten.stack.default, aten.cat.default)  # they take not even a number from the CPU
# The host reads the answer, or must know how large it is.
ANSWERS = (
    *(aten._local_scalar_dense.default, aten.equal.default),  # item(), bool(), int(), float(); torch.equal
    *(aten.nonzero.default, aten.masked_select.default, aten.bincount.default, aten.repeat_interleave.Tensor),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
)

Waits = Counter[tuple[str, str]]  # how often the host waited: by direction, "read" or "send", and line of the package
_counting: list[Waits] = []


@contextmanager
def counted() -> Iterator[Waits]:
    """Count, inside, how often the host waits for the device.

    read  the host reads what the device computes: `.item()`, `bool(x)`, `.cpu()`, `x[mask]`
    send  the device gets numbers from ordinary memory, and the host waits until they are there: `.to(device)`
    """
    _counting.append(waits := Counter())
    try:
        yield waits
    finally:
        _counting.remove(waits)


def total(waits: Waits, direction: str) -> int:
    """How often the host waited in one direction."""
    return sum(times for (each, _), times in waits.items() if each == direction)


def _wait(direction: str, operator: Any) -> None:
    """Count one wait under the innermost line of the package that is at work."""
    if not _counting:
        return
    frame, line = sys._getframe(), "elsewhere"
    while frame and line == "elsewhere":
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGE):
            line = f"{module}:{frame.f_lineno}"
        frame = frame.f_back
    for waits in _counting:
        waits[direction, f"{line} {operator.overloadpacket.__name__}"] += 1


class PretendTensor(Tensor):
    """A tensor on the device; `inner` holds its numbers on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: Tensor):
        if inner.dtype in NOT_THERE:
            raise TypeError(f"the device {NAME} has no {inner.dtype}")
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, args, dict(kwargs or {}))

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "PretendTensor") -> None:
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    # What torch refuses, or answers otherwise, for a tensor that is made in Python.

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; use Tensor.cpu()")

    __array__ = numpy

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()  # for its address and its size

    def __reduce_ex__(self, protocol: int):
        how = (self.detach().cpu(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, how

    def __repr__(self) -> str:
        return f"{NAME}({self.inner})"


def run(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operator that got a tensor of the device: on the CPU, with what a GPU would refuse refused."""
    given: list = []
    mapped(given.append, [*args, *kwargs.values()])
    on_host = [value for value in given if on_the_host(value)]
    if operator in INDEXED and isinstance(args[0], PretendTensor):
        indices = [index for index in args[1] if on_the_host(index)]
        on_host = [value for value in on_host if all(value is not index for index in indices)]
        for _ in indices:
            _wait("send", operator)
    written = [argument for argument in operator._schema.arguments if argument.is_write]
    out = None if not written else kwargs[written[0].name] if written[0].kwarg_only else args[0]
    refused = any(tensor.dim() or tensor is out or operator in JOINS for tensor in on_host)
    if refused and operator not in COPIES:
        raise RuntimeError(
            f"{operator}: expected all tensors to be on the same device, but found two devices, {NAME}:0 and cpu"
        )
    refuse_generator(given)
    if operator in COPIES:
        return copy(operator, args, kwargs)
    if operator in ANSWERS or by_mask(operator, args):
        _wait("read", operator)
    to_host = "device" in kwargs and torch.device(kwargs["device"]).type == "cpu"
    made = operator(*mapped(inner_of, args), **on_cpu({key: mapped(inner_of, value) for key, value in kwargs.items()}))
    if to_host:
        return made
    return out if written else mapped(on_device, made)


def copy(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """`_to_copy` and `copy_`, the two ways from one device to the other."""
    if operator is aten.copy_.default:
        target, source = args[:2]
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        to_host, result = not isinstance(target, PretendTensor), target
        operator(*mapped(inner_of, args), **kwargs)
    else:
        source = args[0]
        waits = not kwargs.get("non_blocking", False)
        to_host = torch.device(kwargs.get("device") or source.device).type == "cpu"
        result = operator(inner_of(source), **on_cpu(kwargs))
        result = result if to_host else PretendTensor(result)
    if waits and to_host == isinstance(source, PretendTensor):
        _wait("read" if to_host else "send", operator)
    return result


def by_mask(operator: Any, args: tuple) -> bool:
    """Whether it is `x[mask]`, or `x[mask] = y`. `x[mask] = number` fills, and needs no size."""
    if operator not in INDEXED:
        return False
    masks = any(isinstance(index, PretendTensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return masks and (len(args) < 3 or args[2].numel() > 1)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of the value, or of each of several: operators take and give tensors, and lists of them."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, each) for each in value])
    return function(value)


def on_the_host(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, PretendTensor)


def inner_of(value: Any) -> Any:
    if not isinstance(value, PretendTensor):
        return value
    assert (value.dtype, value.shape) == (value.inner.dtype, value.inner.shape)
    return value.inner


def on_device(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operator that is to make its result on the CPU."""
    kwargs = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "non_blocking")}
    return kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {})


def refuse_generator(given: list) -> None:
    if any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError(f"expected a {NAME} device type for generator but found cpu")


class Backend(backend_registration._DummyBackendModule):
    """What `torch.pretend` answers: checkpointing and accelerate ask."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.random.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.random.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def made_on_cpu(operator: Any) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        return PretendTensor(operator(*args, **on_cpu({**kwargs, "device": NAME})))

    return made


_library, _every_library = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")


def register() -> None:
    """Give this process the device. The other ways to make a tensor on it end in one of these operators."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device=NAME) makes it on the CPU, and sends it
    empty, ranges = (aten.empty.memory_format, aten.empty_strided.default), aten.arange
    for operator in (*empty, ranges.default, ranges.start, ranges.start_step):
        _library.impl(operator, made_on_cpu(operator), "PrivateUse1")
    # torch.autocast is accepted, and casts nothing.
    _every_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

"""The wire format of existing reward servers (github.com/yifan123/reward-server), read safely.

Such a server takes a pickled dictionary as the body of a POST and replies with another. A pickle can name any function
and have it called. This reader knows only the few names with which numpy arrays are pickled, and handles each by code
of its own. It imports nothing, and numpy gets plain bytes of a plain type only.
"""

import io
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_VALUES = 2**20  # of a reply
SIMPLE = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class Refused(Exception):
    """A pickle that holds anything but numbers, strings, lists, dictionaries and numpy arrays."""


def request(prompts: Sequence[dict], images: Sequence[bytes]) -> bytes:
    """The body of a request: images as PNG files, prompts as texts, and their GenEval metadata."""
    body = {
        "images": list(images),
        "prompts": [prompt["prompt"] for prompt in prompts],
        "meta_datas": list(prompts),
        "only_strict": True,
    }
    return pickle.dumps(body, protocol=4)


def loads(data: bytes) -> Any:
    """The content of a pickle: arrays as lists, numpy scalars as numbers. Executes nothing. Raises Refused."""
    try:
        return _plain(_Reader(io.BytesIO(data)).load(), [MOST_VALUES])
    except Refused:
        raise
    except Exception as error:  # a broken pickle can make the reader fail in any way
        raise Refused(f"not a readable pickle ({type(error).__name__}: {error})") from None


class _Type:
    """Stands for a numpy dtype: a code such as f8, and its byte order."""

    def __init__(self, code: str):
        if code not in SIMPLE:
            raise Refused(f"numpy type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numbers(self, data: bytes) -> np.ndarray:
        if not isinstance(data, bytes | bytearray):
            raise Refused("an array that is not made of bytes")
        return np.frombuffer(bytes(data), np.dtype(self.order + self.code))


class _Array:
    """Stands for a numpy array; its state follows it in the pickle."""

    values: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(dtype, shape, data, "F" if fortran else "C")

    def fill(self, dtype: _Type, shape: tuple[int, ...], data: bytes, order: str) -> "_Array":
        numbers = dtype.numbers(data)
        if len(numbers) != math.prod(shape):
            raise Refused("an array whose shape is not that of its numbers")
        self.values = numbers.reshape(shape, order="F" if order == "F" else "C").tolist()
        return self


class _Reader(pickle.Unpickler):
    """Each name it knows stands for a bound method of its own, which no pickle can change."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy."):
            module = module.replace("numpy._core", "numpy.core")
        known = {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): self._type,
            ("numpy.core.multiarray", "_reconstruct"): self._array,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._from_buffer,
            ("_codecs", "encode"): self._bytes,
        }
        if (module, name) not in known:
            raise Refused(f"the pickle names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a persistent id")

    def _type(self, code: str, *_: Any) -> _Type:
        return _Type(code)

    def _array(self, *_: Any) -> _Array:
        return _Array()

    def _scalar(self, dtype: _Type, data: bytes) -> Any:
        return dtype.numbers(data).item()

    def _from_buffer(self, data: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> _Array:
        return _Array().fill(dtype, shape, data, order)

    def _bytes(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise Refused(f"bytes in {encoding}")
        return text.encode("latin1")


def _plain(value: Any, left: list[int]) -> Any:
    """The value with arrays as lists. Raises Refused for what a reply may not hold.

    left  how many more values it may hold: a few bytes can name one list again and again
    """
    left[0] -= 1
    if left[0] < 0:
        raise Refused(f"more than {MOST_VALUES} values")
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, list | tuple):
        return [_plain(each, left) for each in value]
    if isinstance(value, dict):
        return {_plain(key, left): _plain(each, left) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Refused(f"a {type(value).__name__}")

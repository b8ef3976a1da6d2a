"""Checkpoint folders: config.json and safetensors. Each file is read as a whole, or refused by its name.

A model gets exactly the weights that it has, each finite. Only safetensors are read: other formats can run code.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from htgrpo_ext.errors import UserError, one_line

Size = Annotated[int, Field(ge=1, le=2**20)]  # of one dimension; a larger number in a config.json is an error
Layers = Annotated[int, Field(ge=1, le=1000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=nn.Module)

PIPELINE = "model_index.json"  # a folder of diffusers has it: a folder for each of the pipeline's parts
MODEL, DIFFUSERS = "model", "diffusion_pytorch_model"  # what transformers and diffusers call files of weights
LFS = b"version https://git-lfs"  # a pointer that stands for a large file begins so


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it is missing or holds anything else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: not valid JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: not a JSON object")
    return value


def checked(keys: dict[str, Any], expected: type[BaseModel], file: Path) -> dict[str, Any]:
    """The keys of a config.json that `expected` declares, with its defaults. Raises UserError, one line a mistake."""
    try:
        return expected.model_validate(keys, strict=True).model_dump()
    except ValidationError as errors:
        lines = []
        for error in errors.errors():
            key, got = ".".join(map(str, error["loc"])), one_line(repr(error["input"]), 40)
            match error["type"]:
                case "missing":
                    lines.append(f"{file}: `{key}` is missing")
                case "literal_error":
                    lines.append(f"{file}: {key} {got} is not supported (only {error.get('ctx', {}).get('expected')})")
                case _:
                    lines.append(f"{file}: {key} is {got}; it {error['msg'].replace('Input should', 'should')}")
        if len(absent := [error["loc"][0] for error in errors.errors() if error["type"] == "missing"]) > 3:
            lines = [line for line in lines if not line.endswith(" is missing")]
            lines.append(f"{file}: {', '.join(f'`{key}`' for key in absent)} are missing; is it another model's?")
        raise UserError("\n".join(lines)) from None


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, open. Raises UserError if it is missing or broken."""
    try:
        with safe_open(file, framework="pt") as weights:
            yield weights
    except (OSError, SafetensorError) as error:
        if not file.is_file():
            raise UserError(f"{file}: no such file") from None
        if file.open("rb").read(len(LFS)) == LFS:
            raise UserError(f"{file}: a Git LFS pointer, not the weights (run `git lfs pull` there)") from None
        raise UserError(f"{file}: not a complete safetensors file ({one_line(error)})") from None


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name. Raises UserError also for numbers that are not floats."""
    shapes = {}
    with opened(file) as weights:
        for name in weights.keys():  # noqa: SIM118, it is no mapping
            part = weights.get_slice(name)
            if "F" not in part.get_dtype():
                raise UserError(f"{file}: {name} holds {part.get_dtype()}, not floating-point numbers")
            shapes[name] = tuple(part.get_shape())
    return shapes


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, on the CPU, with their names."""
    with opened(file) as weights:
        for name in weights.keys():  # noqa: SIM118, it is no mapping
            yield name, weights.get_tensor(name)


def refuse_non_finite(name: str, tensor: Tensor, where: Path) -> None:
    """Raises UserError for a tensor with NaN or infinity."""
    # In parts, because isfinite makes copies: of the embedding of an 8B model gigabytes.
    if not all(bool(torch.isfinite(part).all()) for part in tensor.flatten().split(2**26)):
        raise UserError(f"{where}: {name} has values that are not finite")


def trained_part(checkpoint: Path) -> tuple[Path, str]:
    """Where a checkpoint has the weights that are trained: their folder, and what their files are called."""
    if (checkpoint / PIPELINE).is_file():
        return checkpoint / "transformer", DIFFUSERS
    return checkpoint, MODEL


def weight_files(folder: Path, stem: str = MODEL) -> dict[Path, dict[str, tuple[int, ...]]]:
    """The weight files in a folder, each with the shapes of its tensors: model.safetensors, or an index's shards.

    stem  what the files are called, in place of `model`

    Raises UserError if a file is missing or broken, or if files and index disagree.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    single = folder / f"{stem}.safetensors"
    index = folder / f"{single.name}.index.json"
    if single.exists() and index.exists():
        raise UserError(f"{folder}: {single.name} and {index.name} are both there; remove the one that is not meant")
    if single.exists():
        return {single: read_shapes(single)}
    if not index.exists():
        found = sorted(path.name for pattern in ("*.safetensors", "*.bin", "*.pt") for path in folder.glob(pattern))
        there = f"; {found[0]} is not read" if found else ""
        raise UserError(f"{folder}: no weights there ({single.name}, or shards and {index.name}{there})")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: no `weight_map` from weights to files")
    files = {}
    for name in sorted(set(places.values())):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {name!r} is not the name of a safetensors file in this folder")
        shapes = read_shapes(folder / name)
        if odd := sorted({weight for weight, place in places.items() if place == name} ^ shapes.keys()):
            raise UserError(f"{folder / name}: does not hold what {index.name} says, {odd[0]} for one")
        files[folder / name] = shapes
    return files


def check_weights(model: nn.Module, folder: Path, copies: Mapping[str, str], stem: str = MODEL) -> Sequence[Path]:
    """The weight files of a checkpoint folder. Raises UserError unless they hold a model's weights and no others."""
    files, wanted = weight_files(folder, stem), model.state_dict()
    shapes = {name: shape for held in files.values() for name, shape in held.items()}
    for what, names in (
        ("missing", wanted.keys() - shapes.keys()),
        ("unexpected", shapes.keys() - wanted.keys() - copies.keys()),
    ):
        if names:
            raise UserError(f"{folder}: {len(names)} weights are {what}, {min(names)} for one")
    for name, tensor in wanted.items():
        if shapes[name] != tuple(tensor.shape):
            raise UserError(
                f"{folder}: {name} has shape {list(shapes[name])}, but by config.json it is {list(tensor.shape)}"
            )
    return list(files)


def load_weights(
    model: Model, folder: Path, dtype: torch.dtype, copies: Mapping[str, str] | None = None, stem: str = MODEL
) -> Model:
    """Give a model that was made on the meta device the weights of a checkpoint folder, in `dtype`, for evaluation.

    copies  weights that a file may hold a second time: name of the copy, name of the weight
    stem    what the files are called; see `weight_files`

    Raises UserError unless the files hold all weights and no others, each of the right shape and finite.
    """
    copies = copies or {}
    files, held = check_weights(model, folder, copies, stem), {}
    for file in files:
        for name, tensor in read_tensors(file):
            held[name] = tensor.to(dtype, copy=True)  # the file may change during the run
            refuse_non_finite(name, held[name], file)
    for copy, name in copies.items():
        if copy in held and not torch.equal(held.pop(copy), held[name]):
            raise UserError(f"{folder}: {copy} is not {name}, though config.json ties the two (weight_tying)")
    model.load_state_dict(held, assign=True)
    return model.eval()


def load_by_library(load: Callable[[], Any], folder: Path) -> Any:
    """A model that another library reads from `folder`, for evaluation, frozen.

    load  gives the model and what the library found: missing_keys and others

    Raises UserError if that fails, and unless all weights are there and finite.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # the library draws weights before it reads them
            model, found = load()
    except UserError:
        raise
    except Exception as error:  # whatever a broken file leads to in there
        raise UserError(f"{folder}: cannot be loaded ({one_line(error)})") from None
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found.get(what):
            raise UserError(f"{folder}: {what.replace('_', ' ')}: {found[what][0]}")
    for name, weight in model.state_dict().items():
        refuse_non_finite(name, weight, folder)
    return model.eval().requires_grad_(False)

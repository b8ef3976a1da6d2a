"""open_clip for tests. `make test` installs it beside the environment, not in it, because it brings torchvision.

PyPI's torchvision cannot be imported with every build of torch, and transformers imports any torchvision it finds.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(sys.prefix) / "clip"
_definitions = []  # keeps the operators defined


def open_clip():
    """The module; without it the test is skipped."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        pytest.skip(f"open_clip is not there ({error}); make test installs it in {FOLDER.name}/ of the environment")
    except RuntimeError:  # torchvision lacks its compiled operators, which open_clip does not use
        for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "open_clip", "timm")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _definitions.append(library)
        return importlib.import_module("open_clip")

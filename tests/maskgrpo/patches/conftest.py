"""The two upstreams that a series moves on: a small one made here, and MaskGRPO."""

import shutil
from pathlib import Path

import pytest

from helpers.upstream_moves import ROOT, Project, made_here
from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo.patches.checkout import Checkout, get
from htgrpo_ext.maskgrpo.patches.series import Series

OURS = Series.load(ROOT / "patches")


def upstream_is_there() -> bool:
    try:
        return bool(Checkout(ROOT / "upstream").find(OURS.base))
    except UserError:
        return False


def maskgrpo(root: Path) -> Project:
    get(root / "upstream", str(ROOT / "upstream"), OURS.base)
    shutil.copytree(ROOT / "patches", root / "patches")
    return Project(root, OURS.patches[0].path)


NEEDS_UPSTREAM = [
    pytest.mark.upstream,
    pytest.mark.skipif(not upstream_is_there(), reason="upstream/ is empty: make upstream"),
]


@pytest.fixture(params=[made_here, pytest.param(maskgrpo, marks=NEEDS_UPSTREAM)])
def project(request, tmp_path) -> Project:
    return request.param(tmp_path)

"""launch/install.py: packages that cannot be imported are taken out again. A real environment, and wheels made here."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.paths import ROOT


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an empty environment with a torch of the build `cpu`."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    assert install(python, "torch", wheel(folder, "torch", "2.13.0+cpu", "")).returncode == 0
    return python


def wheel(folder: Path, name: str, version: str, code: str, *requires: str) -> Path:
    """A wheel of one module."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", "\n".join(lines))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


def install(python: Path, modules: str, *wheels: Path) -> subprocess.CompletedProcess:
    command = [python, ROOT / "launch/install.py", modules, "--quiet", "--no-index", *wheels]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def packages(python: Path) -> set[str]:
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


def test_packages_that_can_be_imported_stay(python, tmp_path):
    done = install(python, "useful", wheel(tmp_path, "useful", "1.0", "value = 1"))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == "checking that useful can be imported\n"
    assert "useful==1.0" in packages(python)


def test_a_torchvision_for_another_torch_is_taken_out_again(python, tmp_path):
    before = packages(python)
    vision = wheel(tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    clip = wheel(tmp_path, "open_clip", "3.3.0", "import torchvision", "torchvision")
    done = install(python, "torchvision,open_clip", clip, vision)
    assert done.returncode == 2 and packages(python) == before
    assert done.stderr == (
        "error: torchvision, open_clip cannot be imported (RuntimeError: operator torchvision::nms does not exist); "
        "torchvision 0.28.0 needs the torch of PyPI, and torch 2.13.0+cpu is here. Name the index of its build: "
        "TORCH_INDEX=https://download.pytorch.org/whl/cpu. Taken out again: open_clip, torchvision\n"
    )


def test_a_package_that_was_replaced_comes_back(python, tmp_path):
    old, new = wheel(tmp_path, "dated", "1.0", ""), wheel(tmp_path, "dated", "2.0", "import no_such_module")
    assert install(python, "dated", old).returncode == 0
    environment = tmp_path / "pip.conf"
    environment.write_text(f"[global]\nfind-links = {tmp_path}\nno-index = true\n")
    command = [python, ROOT / "launch/install.py", "dated", "--quiet", new]
    done = subprocess.run(command, env={"PIP_CONFIG_FILE": str(environment)}, capture_output=True, text=True)
    assert done.returncode == 2 and "No module named 'no_such_module'" in done.stderr
    assert "dated==1.0" in packages(python)


def test_a_failure_of_pip_is_one_more_line(python, tmp_path):
    done = install(python, "absent", tmp_path / "absent-1.0-py3-none-any.whl")
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: pip failed, see above"

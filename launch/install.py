"""Add packages to this environment, and take them out again unless they can be imported.

    .venv/bin/python launch/install.py MODULE,MODULE.. PIP_ARGUMENT..

runs `pip install PIP_ARGUMENT..` and imports the modules in a process of its own. A torchvision for another build of
torch would otherwise break every command: transformers imports any torchvision it finds. Exit code 2 and one line if
pip or an import fails.
"""

import importlib
import importlib.metadata
import subprocess
import sys

WHEELS = "https://download.pytorch.org/whl"


def versions() -> dict[str, str]:
    """Of every package in this environment."""
    importlib.invalidate_caches()
    return {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}


def pip(*arguments: str) -> bool:
    """Whether a pip command succeeded; its errors go to stderr."""
    return subprocess.run([sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]).returncode == 0


def advice(found: dict[str, str]) -> str:
    """Which build of torch is here, and where packages for it are."""
    torch, build = found.get("torch", "none"), found.get("torch", "").partition("+")[2]
    if "torchvision" not in found or not build:
        return f"packages that use torch must be built for the one that is here, {torch}"
    vision = found["torchvision"]
    other = vision.partition("+")[2] or "PyPI"
    return (
        f"torchvision {vision} needs the torch of {other}, and torch {torch} is here. Name the index of its build: "
        f"TORCH_INDEX={WHEELS}/{build}"
    )


def main(modules: str, *arguments: str) -> int:
    before = versions()
    installed = pip("install", *arguments)
    fault = "pip failed, see above"
    if installed:
        names = modules.split(",")
        print(f"checking that {', '.join(names)} can be imported", flush=True)
        code = "; ".join(f"import {name}" for name in names)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode == 0:
            return 0
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        fault = f"{', '.join(names)} cannot be imported ({said[-1][:300]}); {advice(versions())}"
    after = versions()
    if added := [name for name in after if name not in before]:
        pip("uninstall", "--quiet", "--yes", *added)
        fault += f". Taken out again: {', '.join(sorted(added))}"
    if changed := [f"{name}=={version}" for name, version in before.items() if after.get(name, version) != version]:
        pip("install", "--quiet", "--no-deps", *changed)
    print(f"error: {fault}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`htgrpo serve-reward` as a command: a reward from a file, the stop by a signal, and mistakes."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.serving import SECONDS, body, post, until
from htgrpo_ext import cli

MINE = """
import sys
from htgrpo_ext.errors import UserError

class Mine:
    rewards = ("mine",)
    def __init__(self, device, bonus: float, checkpoint=None):
        if checkpoint:
            raise UserError(f"{checkpoint}: no such file")
        self.bonus = bonus
    def score(self, prompts, images):
        print("scoring", flush=True)
        sys.stdin.readline()
        return {"mine": [float(image.max()) + self.bonus for image in images]}

class Empty:
    pass
"""


@pytest.fixture
def mine(tmp_path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return f"{file}:Mine"


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:  # refused, or reset where the listener closes just then
        return True
    return False


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT], ids=lambda asked: asked.name)
def test_a_reward_from_a_file_is_served_and_a_signal_lets_it_reply_and_end_with_zero(mine, asked):
    command = [sys.executable, "-m", "htgrpo_ext.cli", "serve-reward", mine, "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--set", "bonus=1e-1"], env=environment, **pipes) as process:
        try:
            ready = process.stdout.readline().strip()
            assert ready.startswith(f"{mine}: mine at http://127.0.0.1:") and ready.endswith(", on cpu")
            port = int(ready.removesuffix(", on cpu").rpartition(":")[2])
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(post, f"http://127.0.0.1:{port}", body(7, reward="mine"))
                assert process.stdout.readline() == "scoring\n"
                process.send_signal(asked)
                until(lambda: refuses(port))
                process.stdin.write("go on\n")
                process.stdin.flush()
                assert answer.result(SECONDS) == (200, {"scores": [7.1]})
            assert process.wait(SECONDS) == 0
            assert process.stderr.read() == "" and process.stdout.read() == f"{mine}: stopped\n"
        finally:
            process.kill()


def command(monkeypatch, capsys, *arguments) -> str:
    """The errors of `htgrpo serve-reward ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["htgrpo", "serve-reward", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    return said.err


def test_mistakes_on_the_command_line_are_one_line_each(mine, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        file = mine.rpartition(":")[0]
        bad, raising = Path(file).with_name("bad.py"), Path(file).with_name("raising.py")
        bad.write_text("\nclass Mine(:\n")
        raising.write_text("\nimport no_such_package\n")
        for arguments, says in [
            (["clap", "--port", "0"], "unknown reward `clap` (one of "),
            ([f"{file}:Other", "--port", "0"], f"{file}:Other: no class with `rewards` and `score`"),
            ([f"{file}:Empty", "--port", "0"], f"{file}:Empty: no class with `rewards` and `score`"),
            (["nowhere.py:Mine", "--port", "0"], "nowhere.py: no such file"),
            ([mine, "--port", "0"], f"reward {mine}: option `bonus` is missing"),
            ([mine, "--port", "0", "--set", "bonus"], "--set bonus: expected option=value"),
            (["micro", "--port", "0", "--set", "size=1"], "reward micro: unknown option `size` (one of none)"),
            (["micro", "--port", "0", "--device", "tpu9"], "--device tpu9: no device"),
            (["micro", "--port", "0", "--device", "meta"], "--device meta: no device"),
            (["micro", "--port", "0", "--device", "cpu,"], "--device : no device"),
            (["micro", "--port", "0", "--max-mib", "inf"], "--max-mib inf: must be a number from 0 to 16384"),
            (["micro", "--port", "0", "--max-mib", "1e300"], "--max-mib 1e+300: must be a number"),
            (["micro", "--port", "0", "--wait-ms", "inf"], "--wait-ms inf: must be a number from 0 to 60000"),
            (["micro", "--port", "0", "--host", "x" * 64], "cannot serve on xxx"),
            (["micro", "--port", "0", "--host", "256.0.0.1"], "cannot serve on 256.0.0.1:0: "),
            ([mine, "--port", "0", "--set", "bonus=[1"], f"reward {mine}: option `bonus`: input should be a valid"),
            ([f"{bad}:Mine", "--port", "0"], f"{bad}:2: SyntaxError: "),
            ([f"{raising}:Mine", "--port", "0"], f"{raising}:2: ModuleNotFoundError: No module named 'no_such"),
            (["micro", "--port", "0", "--device", "cpu,cuda:99"], "--device cuda:99: this machine has "),
            ([mine, "--port", port, "--set", "bonus=1"], f"cannot serve on 127.0.0.1:{port}: Address already in use"),
            ([mine, "--port", "0", "--set", "bonus=1", "--set", "checkpoint=x.pt"], "x.pt: no such file"),
        ]:
            said = command(monkeypatch, capsys, *arguments)
            assert said.startswith(f"error: {says}") and said.count("\n") == 1, said


def test_an_open_server_without_a_token_gives_a_warning(mine, monkeypatch, capsys):
    arguments = [mine, "--port", "0", "--host", "0.0.0.0", "--set", "bonus=1", "--set", "checkpoint=x.pt"]
    monkeypatch.delenv("HTGRPO_REWARD_TOKEN", raising=False)
    warning, error = command(monkeypatch, capsys, *arguments).splitlines()
    assert warning == "warning: 0.0.0.0 can be reached from other machines, and HTGRPO_REWARD_TOKEN is not set"
    monkeypatch.setenv("HTGRPO_REWARD_TOKEN", "sesame")
    assert command(monkeypatch, capsys, *arguments) == error + "\n"


def test_the_server_imports_no_training_packages():
    code = """if True:
        import sys
        for name in ("transformers", "accelerate", "peft", "trl", "deepspeed"):
            sys.modules[name] = None  # to import it is an ImportError
        from htgrpo_ext import cli, config
        from htgrpo_ext.rewards import server
        from htgrpo_ext.rewards.scorers import scorer_class
        print(scorer_class("micro").rewards)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "('verdict', 'partial')\n", done.stderr

"""Checkpoint folders: what is missing, broken or of another model is refused by name, and nothing is made up."""

import json
import random
import shutil
import socket
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers.command import run
from helpers.llada_checkpoints import write_config, write_weights
from helpers.micro_runs import CONFIGS, tiny_checkpoint, tiny_overrides
from htgrpo_ext.backbones.llada.transformer import check_llada, load_llada
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone
from htgrpo_ext.backbones.micro.backbone import MicroBackbone
from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.errors import UserError

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def edited(change):
    """A change of a folder's config.json."""

    def apply(folder):
        keys = json.loads((folder / "config.json").read_text())
        change(keys)
        (folder / "config.json").write_text(json.dumps(keys))

    return apply


def weights(change, name="model.safetensors"):
    """A change of the tensors in one file of a folder."""

    def apply(folder):
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return apply


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def truncated(name, share):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(share * (folder / name).stat().st_size)]
    )


BROKEN_CONFIGS = {
    "garbage": (write("config.json", b"\x80\x00"), "config.json: not valid JSON"),
    "empty": (write("config.json", b""), "config.json: not valid JSON"),
    "deep": (write("config.json", b"[" * 100_000), "config.json: not valid JSON"),
    "a list": (write("config.json", b"[]"), "config.json: not a JSON object"),
}
MICRO = BROKEN_CONFIGS | {
    "no keys": (write("config.json", b"{}"), "`num_text_tokens`, `codebook_size`"),
    "a string": (edited(lambda k: k.update(hidden_size="32")), "hidden_size is '32'; it should be a valid integer"),
    "a fraction": (edited(lambda k: k.update(num_layers=2.5)), "num_layers is 2.5; it should be a valid integer"),
    "zero": (edited(lambda k: k.update(num_heads=0)), "num_heads is 0; it should be greater than or equal to 1"),
    "huge": (edited(lambda k: k.update(num_layers=10**9)), "num_layers is 1000000000; it should be less than or"),
    "infinite": (edited(lambda k: k.update(rope_base=float("inf"))), "rope_base is inf; it should be a finite number"),
    "heads": (edited(lambda k: k.update(num_heads=3)), "heads do not divide evenly (hidden_size 32, num_heads 3)"),
    "other model": (edited(lambda k: k.update(model_type="llada")), "a model of type 'llada', not the micro model"),
    "other world": (edited(lambda k: k.update(codebook_size=441)), "codebook_size is 441, grid 8; the world has"),
    "fewer layers": (edited(lambda k: k.update(num_layers=1)), "9 weights are unexpected, blocks.1.attn_norm.weight"),
    "more layers": (edited(lambda k: k.update(num_layers=3)), "9 weights are missing, blocks.2.attn_norm.weight"),
    "other width": (edited(lambda k: k.update(ffn_size=64)), "has shape [48, 32], but by config.json it is [64, 32]"),
    "weight lacks": (weights(lambda t: t.pop("norm.weight")), "1 weights are missing, norm.weight"),
    "weight too many": (weights(lambda t: t.update(x=torch.ones(1))), "1 weights are unexpected, x"),
    "NaN": (weights(lambda t: t["norm.weight"].fill_(np.nan)), "norm.weight has values that are not finite"),
    "infinity": (weights(lambda t: t["lm_head.weight"][3].fill_(-np.inf)), "lm_head.weight has values that are not"),
    "integers": (weights(lambda t: t.update({"norm.weight": torch.ones(32).int()})), "norm.weight holds I32, not"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors: not a complete safetensors file"),
    "half the weights": (truncated("model.safetensors", 0.5), "model.safetensors: not a complete safetensors file"),
    "garbage weights": (write("model.safetensors", b"\x07" * 4000), "model.safetensors: not a complete safetensors"),
    "LFS": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid"),
        "a Git LFS pointer, not the",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights there (model.safetensors, or"),
    "a folder": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        "model.safetensors: no such file",
    ),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        f"no weights there (model.safetensors, or shards and {INDEX}; pytorch_model.bin is not read)",
    ),
}


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("micro"))


@pytest.mark.parametrize(("spoil", "line"), MICRO.values(), ids=MICRO.keys())
def test_a_spoilt_micro_checkpoint_is_refused_before_anything_is_written(
    monkeypatch, capsys, tmp_path, micro, spoil, line
):
    folder, out = shutil.copytree(micro, tmp_path / "model"), tmp_path / "run"
    spoil(folder)
    files = [str(CONFIGS / f"{name}.yaml") for name in ("model/micro", "method/unigrpo")]
    sets = [part for setting in tiny_overrides(folder, out) for part in ("--set", setting)]
    assert run(monkeypatch, "train", *files, *sets) == 2
    error = capsys.readouterr().err
    assert line in error and all(text.startswith(f"error: {folder}") for text in error.splitlines())
    assert not out.exists()


LLADA = BROKEN_CONFIGS | {
    "no keys": (write("config.json", b"{}"), "`d_model`, `n_heads`"),
    "a string": (edited(lambda k: k.update(d_model="32")), "d_model is '32'; it should be a valid integer"),
    "no theta": (edited(lambda k: k.pop("rope_theta")), "config.json: `rope_theta` is missing"),
    "no tying": (edited(lambda k: k.pop("weight_tying")), "config.json: `weight_tying` is missing"),
    "odd heads": (edited(lambda k: k.update(n_heads=32, n_kv_heads=32)), "heads do not divide evenly"),
    "their keys": (edited(lambda k: k.update(problem_type="x")), "config.json: cannot be used (The config parameter"),
    "other network": (edited(lambda k: k.update(include_qkv_bias=True)), "6 weights are missing"),
    "NaN": (
        weights(lambda t: t["model.transformer.blocks.0.q_proj.weight"][0].fill_(np.nan), SHARD),
        f"{SHARD}: model.transformer.blocks.0.q_proj.weight has values that are not finite",
    ),
    "shard empty": (write(SHARD, b""), f"{SHARD}: not a complete safetensors file"),
    "shard lacks": (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: no such file"),
    "shard of another": (
        lambda folder: shutil.copy(folder / SHARD.replace("2-of", "3-of"), folder / SHARD),
        f"{SHARD}: does not hold what {INDEX} says, ",
    ),
    "no index": (lambda folder: (folder / INDEX).unlink(), f"{INDEX}; model-00001-of-00003.safetensors is not read"),
    "index garbage": (write(INDEX, b"{"), f"{INDEX}: not valid JSON"),
    "index a list": (write(INDEX, b"[1]"), f"{INDEX}: not a JSON object"),
    "index without a map": (write(INDEX, b'{"weight_map": []}'), f"{INDEX}: no `weight_map` from weights to files"),
    "index of numbers": (write(INDEX, b'{"weight_map": {"a": 1}}'), f"{INDEX}: no `weight_map` from weights to"),
    "index elsewhere": (
        write(INDEX, b'{"weight_map": {"a": "../a.safetensors"}}'),
        f"{INDEX}: '../a.safetensors' is not the name of a safetensors file in this folder",
    ),
    "two formats": (
        lambda folder: shutil.copy(folder / SHARD, folder / "model.safetensors"),
        f"model.safetensors and {INDEX} are both there; remove the one that is not meant",
    ),
}


@pytest.mark.parametrize(("spoil", "line"), LLADA.values(), ids=LLADA.keys())
@pytest.mark.parametrize("load", [lambda folder: load_llada(folder, torch.float32), check_llada], ids=["load", "check"])
def test_a_spoilt_checkpoint_of_llada_is_refused_by_name(tmp_path, load, spoil, line):
    write_weights(tmp_path, write_config(tmp_path, vocab_size=50, embedding_size=64))
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert line in str(caught.value) and all(text.startswith(str(tmp_path)) for text in str(caught.value).splitlines())


def test_a_number_too_large_for_the_type_is_refused(tmp_path):
    write_weights(tmp_path, write_config(tmp_path, vocab_size=50, embedding_size=64))
    weights(lambda t: t["model.transformer.blocks.0.q_proj.weight"][0].fill_(3.4e38), SHARD)(tmp_path)
    load_llada(tmp_path, torch.float32)
    with pytest.raises(UserError, match="q_proj.weight has values that are not finite"):
        load_llada(tmp_path, torch.bfloat16)


def test_a_tied_head_may_be_there_twice_if_it_is_the_same(tmp_path):
    write_weights(tmp_path, write_config(tmp_path, vocab_size=50, embedding_size=64, weight_tying=True))
    places = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    name, head = places["model.transformer.wte.weight"], "model.transformer.ff_out.weight"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places | {head: name}}))
    weights(lambda t: t.update({head: t["model.transformer.wte.weight"].clone()}), name)(tmp_path)
    load_llada(tmp_path, torch.float32)
    weights(lambda t: t[head].add_(1), name)(tmp_path)
    with pytest.raises(UserError, match="ff_out.weight is not model.transformer.wte.weight, though config.json ties"):
        load_llada(tmp_path, torch.float32)


def test_a_micro_checkpoint_in_shards_is_loaded_whole(tmp_path, micro):
    model = MicroBackbone.load(micro).model
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = MicroBackbone.load(tmp_path).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("backbone", [MicroBackbone, MMaDABackbone, LuminaBackbone])
def test_a_mistyped_folder_is_refused_without_the_network(tmp_path, monkeypatch, backbone):
    def no_network(*_, **__):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(UserError, match="nowhere: no (micro )?checkpoint there"):
        backbone.load(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b'{"model": 5}', b"\xff"], ids=str)
def test_a_broken_tokenizer_is_refused_without_the_network(tmp_path, monkeypatch, lumina_folder, data):
    for file in lumina_folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    if data is not None:
        (tmp_path / "tokenizer.json").write_bytes(data)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was tried"))
    with pytest.raises(UserError, match=f"{tmp_path}: no tokenizer can be loaded"):
        LuminaBackbone.load(tmp_path)


VQ = {
    "config garbage": (write("config.json", b"{"), "cannot be loaded"),
    "config a list": (write("config.json", b"[]"), "cannot be loaded"),
    "string sizes": (edited(lambda k: k.update(latent_channels="4")), "cannot be loaded"),
    "weight lacks": (
        weights(lambda t: t.pop("decoder.conv_out.weight"), "diffusion_pytorch_model.safetensors"),
        "missing keys: decoder.conv_out.weight",
    ),
    "NaN": (
        weights(lambda t: t["decoder.conv_out.weight"].fill_(np.nan), "diffusion_pytorch_model.safetensors"),
        "decoder.conv_out.weight has values that are not finite",
    ),
    "half": (truncated("diffusion_pytorch_model.safetensors", 0.5), "cannot be loaded"),
    "no weights": (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize(("spoil", "line"), VQ.values(), ids=VQ.keys())
def test_a_spoilt_vq_model_is_refused_by_its_folder(tmp_path, lumina_folder, spoil, line):
    folder = shutil.copytree(lumina_folder / "vqvae", tmp_path / "vqvae")
    spoil(folder)
    model = torch.nn.Linear(1, 1)
    model.config = None
    backbone = LuminaBackbone(model, None, vq_checkpoint=tmp_path)
    state = torch.get_rng_state()
    with pytest.raises(UserError) as caught:
        backbone.prepare_decoder()
    assert str(caught.value).startswith(f"{folder}: ") and line in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


# --- damage at random -----------------------------------------------------------------------------------------


def spoil_at_random(folder, seed: int) -> None:
    """Truncate, flip a byte of, or delete one file."""
    rng = random.Random(seed)
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(file.read_bytes())
    match rng.choice(("truncate", "flip", "delete")):
        case "truncate":
            file.write_bytes(data[: rng.randrange(len(data))])
        case "flip":  # half of them in the first bytes, where headers are
            place = rng.randrange(rng.choice((len(data), min(len(data), 2000))))
            data[place] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        case "delete":
            file.unlink()


def tensors_in(folder) -> dict[str, np.ndarray]:
    """All tensors of a folder's float32 safetensors, read from the format's description alone."""
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, part in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in part["data_offsets"])
                found[name] = np.frombuffer(data[start:end], dtype="<f4").reshape(part["shape"])
    return found


def refused_or_loaded_right(folder, load) -> None:
    """`load` names the folder in a UserError, or gives the numbers that are in the files, all finite."""
    try:
        model = load(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return
    there = tensors_in(folder)
    for name, weight in model.state_dict().items():
        assert np.isfinite(there[name]).all() and np.array_equal(weight.numpy(), there[name]), name
    assert there.keys() == model.state_dict().keys()
    keys = json.loads((folder / "config.json").read_text())
    for key in ("n_heads", "rope_theta", "rms_norm_eps", "num_heads", "rope_base", "prompt_length"):
        assert key not in keys or getattr(model.config, key) == keys[key]


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_a_randomly_damaged_micro_checkpoint_is_refused_or_loaded_right(tmp_path_factory, micro, seed):
    folder = shutil.copytree(micro, tmp_path_factory.mktemp("damaged") / "model")
    spoil_at_random(folder, seed)
    refused_or_loaded_right(folder, lambda folder: MicroBackbone.load(folder).model)
    shutil.rmtree(folder)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_a_randomly_damaged_checkpoint_of_llada_is_refused_or_loaded_right(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("damaged")
    write_weights(folder, write_config(folder, vocab_size=50, embedding_size=64))
    spoil_at_random(folder, seed)
    refused_or_loaded_right(folder, lambda folder: load_llada(folder, torch.float32))
    shutil.rmtree(folder)


@settings(max_examples=8)
@given(st.integers(0, 2**32))
def test_a_randomly_damaged_folder_of_lumina_is_refused_or_loaded_right(tmp_path_factory, lumina_folder, seed):
    """With its tokenizer and its VQ model, of which a flipped word or number cannot be told from a right one."""

    def load(folder):
        backbone = LuminaBackbone.load(folder, frozen=True)
        backbone.prepare_decoder()
        return backbone.model

    folder = shutil.copytree(lumina_folder, tmp_path_factory.mktemp("damaged") / "model")
    spoil_at_random(folder, seed)
    refused_or_loaded_right(folder, load)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [MMaDABackbone, LuminaBackbone])
def test_full_weights_are_saved_with_all_that_a_checkpoint_of_their_own_needs(
    kind, tmp_path, mmada_folder, lumina_folder
):
    folder = mmada_folder if kind is MMaDABackbone else lumina_folder
    size = {} if kind is MMaDABackbone else {"height": 48, "width": 80}
    trained = kind.load(folder, prompt_length=40, **size)
    with torch.no_grad():
        for weight in trained.model.parameters():
            weight.mul_(1.01)
    trained.save(tmp_path)
    again = kind.load(tmp_path, prompt_length=40, **size)
    prompts = [backbone.encode_prompts(["a photo of a red apple"]) for backbone in (trained, again)]
    codes = torch.arange(trained.num_image_tokens)[None]
    hidden = codes % 2 == 0
    codes = codes.masked_fill(hidden, MASK)
    with torch.no_grad():
        logits = [b.image_logits(rows, codes, hidden) for b, rows in zip((trained, again), prompts, strict=True)]
    assert torch.equal(*logits)
    if kind is LuminaBackbone:
        assert torch.equal(*(backbone.decode(codes.clamp(min=0)) for backbone in (trained, again)))
    indexed = json.loads((tmp_path / INDEX).read_text())["weight_map"] if (tmp_path / INDEX).exists() else {}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == (set(indexed.values()) or {"model.safetensors"})

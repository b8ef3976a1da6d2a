"""Adapters folded in: against peft's own forward, file by file, and what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from helpers.llada_checkpoints import write_config, write_weights
from htgrpo_ext.backbones.adapters import fold_into_model, merge, read_adapter
from htgrpo_ext.backbones.llada.transformer import load_llada
from htgrpo_ext.backbones.policy import with_adapters
from htgrpo_ext.errors import UserError

SMALL = {"vocab_size": 50, "embedding_size": 64}
LORA = {"r": 4, "lora_alpha": 6, "target_modules": r".*\.blocks\.\d+\.(q_proj|ff_out|up_proj)"}
IDS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trained(tmp_path):
    """A checkpoint, an adapter as training saves it, and the logits with it."""
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    folder.mkdir()
    write_weights(folder, write_config(folder, **SMALL))
    (folder / "vqvae").mkdir()
    (folder / "vqvae" / "model.safetensors").write_bytes(b"untouched")
    model = with_adapters(load_llada(folder, torch.float32), LORA, seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        logits = model(IDS).logits
    model.save_pretrained(adapter)
    return folder, adapter, logits


def test_merged_logits_are_those_of_peft_with_the_adapter(trained, tmp_path):
    folder, adapter, logits = trained
    out = tmp_path / "merged"
    assert merge(folder, adapter, out) == 2 * 3  # two blocks, three projections
    with torch.no_grad():
        torch.testing.assert_close(load_llada(out, torch.float32)(IDS).logits, logits, atol=1e-5, rtol=0)
        assert (load_llada(folder, torch.float32)(IDS).logits - logits).abs().max() > 1e-2
        model = load_llada(folder, torch.float32)
        fold_into_model(model, read_adapter(adapter))
        torch.testing.assert_close(model(IDS).logits, logits, atol=1e-5, rtol=0)


def test_merging_leaves_all_other_files_and_weights_unchanged(trained, tmp_path):
    folder, adapter, _ = trained
    out = tmp_path / "merged"
    merge(folder, adapter, out)
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))
    assert sorted(str(f.relative_to(out)) for f in out.rglob("*")) == names
    for name in names:
        before, after = folder / name, out / name
        if before.is_dir() or not name.startswith("model-"):
            assert before.is_dir() or before.read_bytes() == after.read_bytes(), name
            continue
        old, new = load_file(before), load_file(after)
        assert list(old) == list(new)
        changed = {key.split(".")[-2] for key in old if not torch.equal(old[key], new[key])}
        assert changed <= {"q_proj", "ff_out", "up_proj"}


def test_merged_bfloat16_weights_are_rounded_once(trained, tmp_path):
    folder, adapter, _ = trained
    for shard in folder.glob("model-*.safetensors"):
        save_file({k: w.bfloat16() for k, w in load_file(shard).items()}, shard, metadata={"format": "pt"})
    merge(folder, adapter, tmp_path / "merged")
    name = "blocks.1.ff_out"
    old, new = (load_file(f / "model-00002-of-00003.safetensors") for f in (folder, tmp_path / "merged"))
    matrices = load_file(adapter / "adapter_model.safetensors")
    a, b = (matrices[f"base_model.model.model.transformer.{name}.lora_{x}.weight"].double() for x in "AB")
    key = f"model.transformer.{name}.weight"
    assert torch.equal(new[key], (old[key].double() + 6 / 4 * b @ a).bfloat16())


def test_unusable_adapters_and_checkpoints_are_refused_and_nothing_is_written(trained, tmp_path):
    folder, adapter, _ = trained
    out = tmp_path / "merged"
    with pytest.raises(UserError, match="no adapter there"):
        merge(folder, folder, out)
    other = tmp_path / "other"
    other.mkdir()
    write_weights(other, write_config(other, **SMALL, d_model=64))
    with pytest.raises(UserError, match=r"changes model\.transformer\.blocks\.0\.\w+\.weight, shape .* of shape"):
        merge(other, adapter, out)
    with pytest.raises(UserError, match=r"the model: the adapter changes .* of shape"):
        fold_into_model(load_llada(other, torch.float32), read_adapter(adapter))
    config(use_rslora=True)(adapter)
    with pytest.raises(UserError, match="`use_rslora` is True; only plain LoRA"):
        merge(folder, adapter, out)
    config(use_rslora=False)(adapter)
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        merge(folder, adapter, out)
    shutil.rmtree(out)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors: no such file"):
        merge(folder, adapter, out)


# --- an adapter that is only partly understood is refused ---------------------------------------------------------


def config(**keys):
    """A change of adapter_config.json."""

    def apply(adapter):
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return apply


def tensors(change):
    """A change of the adapter's tensors: `change` gives others, or changes those it gets."""

    def apply(adapter):
        held = load_file(adapter / "adapter_model.safetensors")
        save_file(change(held) or held, adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    return apply


def written(name, data):
    return lambda adapter: (adapter / name).write_bytes(data)


A, B = (f"base_model.model.model.transformer.blocks.0.ff_out.lora_{part}.weight" for part in "AB")
BROKEN = {
    "config garbage": (written("adapter_config.json", b"{"), "adapter_config.json: not valid JSON"),
    "config a list": (written("adapter_config.json", b"[]"), "adapter_config.json: not a JSON object"),
    "config without keys": (written("adapter_config.json", b"{}"), "`lora_alpha`, `target_modules` are missing"),
    "r 0": (config(r=0), "r is 0; it should be greater than 0"),
    "r text": (config(r="4"), "r is '4'; it should be a valid integer"),
    "alpha NaN": (config(lora_alpha=float("nan")), "lora_alpha is nan; it should be a finite number"),
    "alpha 0": (config(lora_alpha=0), "the adapter changes no weight (is it an untrained one?)"),
    "not LoRA": (config(peft_type="LOHA"), "peft_type 'LOHA' is not supported (only 'LORA')"),
    "bias": (config(bias="all"), "bias 'all' is not supported (only 'none')"),
    "lora_bias": (config(lora_bias=True), "`lora_bias` is True; only plain LoRA"),
    "rows": (config(trainable_token_indices=[1, 2]), "`trainable_token_indices` is [1, 2]; only plain LoRA"),
    "ranks": (config(rank_pattern={"q_proj": 8}), "`rank_pattern` is {'q_proj': 8}; only plain LoRA"),
    "a later peft's": (config(some_new_kind=0.5), "`some_new_kind` is 0.5; only plain LoRA"),
    "another rank": (config(r=8), ".weight has matrices of shapes {'A': (4, "),
    "keys with the adapter's name": (
        tensors(lambda t: {key.replace(".weight", ".default.weight"): w for key, w in t.items()}),
        "lora_A.default.weight is no tensor of plain LoRA",
    ),
    "keys without prefix": (
        tensors(lambda t: {key.removeprefix("base_model.model."): w for key, w in t.items()}),
        "lora_A.weight is no tensor of plain LoRA",
    ),
    "an embedding": (
        tensors(lambda t: t.update({"base_model.model.wte.lora_embedding_A": torch.ones(4, 64)})),
        "base_model.model.wte.lora_embedding_A is no tensor of plain LoRA",
    ),
    "a whole weight": (
        tensors(lambda t: t.update({"base_model.model.model.transformer.ln_f.weight": torch.ones(32)})),
        "ln_f.weight is no tensor of plain LoRA",
    ),
    "no tensors": (written("adapter_model.safetensors", b"\2\0\0\0\0\0\0\0{}"), "holds no tensors"),
    "half a pair": (tensors(lambda t: {key: w for key, w in t.items() if key != B}), "needs two matrices, lora_A and"),
    "a pair lacks": (
        tensors(lambda t: {key: w for key, w in t.items() if key not in (A, B)}),
        "incomplete, no tensors for model.transformer.blocks.0.ff_out.weight, which target_modules names",
    ),
    "untrained": (tensors(lambda t: {key: w * ("lora_A" in key) for key, w in t.items()}), "changes no weight"),
    "NaN": (tensors(lambda t: t.update({B: t[B] * float("nan")})), f"{B} has values that are not finite"),
    "too large": (tensors(lambda t: t.update({A: t[A] * 0 + 1e30, B: t[B] * 0 + 1e30})), "ff_out.weight has values"),
    "LFS": (written("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "a Git LFS pointer"),
    "empty": (written("adapter_model.safetensors", b""), "not a complete safetensors file"),
    "garbage": (written("adapter_model.safetensors", b"\1" * 900), "not a complete safetensors file"),
    "absent": (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "no adapter there"),
}


@pytest.mark.parametrize(("spoil", "line"), BROKEN.values(), ids=BROKEN.keys())
def test_a_spoilt_adapter_is_refused_by_merge_and_sample_and_nothing_is_left(trained, tmp_path, spoil, line):
    folder, adapter, _ = trained
    spoil(adapter)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as merging:
        merge(folder, adapter, tmp_path / "merged")
    with pytest.raises(UserError) as folding:
        fold_into_model(load_llada(folder, torch.float32), read_adapter(adapter))
    for caught in (merging, folding):
        assert line in str(caught.value) and all(str(adapter) in text for text in str(caught.value).splitlines())
    assert sorted(tmp_path.iterdir()) == before


INITIALISATIONS = [True, False, "gaussian", "pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "lora_ga"]


@pytest.mark.parametrize("kind", INITIALISATIONS, ids=str)
def test_an_adapter_of_any_initialisation_is_merged_as_peft_loads_it_or_refused(trained, tmp_path, kind):
    """Peft's own loading is the oracle. Those that it cannot make here without data are refused by their name."""
    folder, adapter, _ = trained
    if kind in ("eva", "corda", "loftq", "lora_ga"):
        config(init_lora_weights=kind)(adapter)
        with pytest.raises(UserError, match=f"init_lora_weights '{kind}' is not supported"):
            merge(folder, adapter, tmp_path / "merged")
        return
    model = with_adapters(load_llada(folder, torch.float32), LORA | {"init_lora_weights": kind}, seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(adapter)
    with torch.no_grad():
        want = PeftModel.from_pretrained(load_llada(folder, torch.float32), adapter)(IDS).logits
    try:
        merge(folder, adapter, tmp_path / "merged")
    except UserError as error:
        assert f"init_lora_weights '{kind}' is not supported" in str(error) and isinstance(kind, str)
    else:
        with torch.no_grad():
            have = load_llada(tmp_path / "merged", torch.float32)(IDS).logits
        torch.testing.assert_close(have, want, atol=1e-5, rtol=0)


def test_an_adapter_of_some_layers_is_merged_as_peft_loads_it(trained, tmp_path):
    folder, adapter, _ = trained
    lora = LORA | {"target_modules": ["q_proj", "attn_out"], "layers_to_transform": [1], "layers_pattern": "blocks"}
    model = with_adapters(load_llada(folder, torch.float32), lora, seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    model.save_pretrained(adapter)
    assert merge(folder, adapter, tmp_path / "merged") == 2
    with torch.no_grad():
        have = load_llada(tmp_path / "merged", torch.float32)(IDS).logits
        want = PeftModel.from_pretrained(load_llada(folder, torch.float32), adapter)(IDS).logits
    torch.testing.assert_close(have, want, atol=1e-5, rtol=0)


# --- folders --------------------------------------------------------------------------------------------------


def test_merging_from_and_into_folders_that_cannot_be_written(trained, tmp_path, monkeypatch):
    folder, adapter, _ = trained
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    merge(folder, adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "vqvae").stat().st_mode & 0o200  # so that it can be changed and removed
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/merged: cannot be written .*Not a directory"):
        merge(folder, adapter, tmp_path / "file" / "merged")
    with pytest.raises(UserError, match="cannot be written .*File name too long"):
        merge(folder, adapter, tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="lies in the checkpoint that is copied there"):
        merge(folder, adapter, folder / "merged")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("htgrpo_ext.backbones.adapters.save_file", full)
    with pytest.raises(UserError, match="again: cannot be written .*No space left on device"):
        merge(folder, adapter, tmp_path / "again")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="do not fit on this disk, 0.0 GB are free"):
        merge(folder, adapter, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "file", "merged"]


def test_a_home_is_expanded_and_hidden_or_pickled_copies_are_left_behind(trained, tmp_path, monkeypatch):
    folder, adapter, logits = trained
    monkeypatch.setenv("HOME", str(tmp_path))
    (folder / ".git").mkdir()
    (folder / "pytorch_model.bin").touch()
    (folder / "vqvae" / "pytorch_model.bin").touch()
    merge(Path("~/base"), Path("~/adapter"), Path("~/merged"))
    assert not (tmp_path / "merged" / ".git").exists() and not (tmp_path / "merged" / "pytorch_model.bin").exists()
    assert (tmp_path / "merged" / "vqvae" / "pytorch_model.bin").exists()
    with torch.no_grad():
        torch.testing.assert_close(
            load_llada(tmp_path / "merged", torch.float32)(IDS).logits, logits, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: (folder / "model-00003-of-00003.safetensors").unlink(), "00003-of-00003.safetensors: no such"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "no weights there"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    ],
)
def test_an_incomplete_checkpoint_is_not_merged(trained, tmp_path, spoil, line):
    folder, adapter, _ = trained
    spoil(folder)
    with pytest.raises(UserError, match=line):
        merge(folder, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()

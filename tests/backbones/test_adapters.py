"""Adapters folded in: against peft's own forward, file by file, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.llada_checkpoints import write_config, write_weights
from htgrpo_ext.backbones.adapters import fold_into_model, merge
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
        fold_into_model(model, adapter)
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
        fold_into_model(load_llada(other, torch.float32), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    with pytest.raises(UserError, match="`use_rslora` is True; only plain LoRA"):
        merge(folder, adapter, out)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="exists already"):
        merge(folder, adapter, out)
    shutil.rmtree(out)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors there"):
        merge(folder, adapter, out)

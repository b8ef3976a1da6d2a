"""The transformer: what is refused, what is hidden, what is computed. Equality with the authors': test_upstream_*."""

import json

import pytest
import torch

from helpers.llada_checkpoints import mmada_checkpoint, write_config, write_weights
from htgrpo_ext.backbones.llada.transformer import LladaModel, load_llada, read_config
from htgrpo_ext.backbones.mmada import Mmada
from htgrpo_ext.backbones.policy import with_adapters
from htgrpo_ext.backbones.settings import Lora
from htgrpo_ext.errors import UserError

SMALL = {"vocab_size": 50, "embedding_size": 64}


@pytest.fixture
def folder(tmp_path):
    write_weights(tmp_path, write_config(tmp_path, **SMALL))
    return tmp_path


def model_of(folder, **keys):
    write_weights(folder, write_config(folder, **{**SMALL, **keys}))
    return load_llada(folder, torch.float32).eval()


def random_ids(rows=2, length=9):
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(1))


def plain_logits(weights: dict[str, torch.Tensor], ids: torch.Tensor, config: dict) -> torch.Tensor:
    """The network in float64, one row and one head at a time, from the file's weights. [S, V]"""
    w = {name.removeprefix("model.transformer."): t.double() for name, t in weights.items()}
    heads, kv_heads = config["n_heads"], config["n_kv_heads"]
    width = config["d_model"] // heads

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[f"{name}.weight"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def turned(x):  # each pair (i, i + width/2) of a head turns by its own angle, as complex numbers do
        i = torch.arange(width // 2).double()
        angle = torch.arange(len(x)).double()[:, None] * config["rope_theta"] ** (-2 * i / width)
        z = torch.complex(x[:, : width // 2], x[:, width // 2 :]) * torch.exp(1j * angle)
        return torch.cat([z.real, z.imag], dim=-1)

    x = w["wte.weight"][ids]
    for i in range(config["n_layers"]):
        block = f"blocks.{i}."
        h = norm(x, f"{block}attn_norm")
        q, k, v = (linear(h, f"{block}{name}_proj").split(width, dim=-1) for name in "qkv")
        attended = []
        for head in range(heads):
            kv = head * kv_heads // heads
            scores = turned(q[head]) @ turned(k[kv]).T / width**0.5
            attended.append(scores.softmax(-1) @ v[kv])
        x = x + linear(torch.cat(attended, dim=-1), f"{block}attn_out")
        h = norm(x, f"{block}ff_norm")
        gate = linear(h, f"{block}ff_proj")
        x = x + linear(gate * gate.sigmoid() * linear(h, f"{block}up_proj"), f"{block}ff_out")
    return norm(x, "ln_f") @ w.get("ff_out.weight", w["wte.weight"]).T


@pytest.mark.parametrize(
    "keys",
    [{}, {"n_kv_heads": 2}, {"include_qkv_bias": True}, {"weight_tying": True}, {"rope_theta": 100.0}],
    ids=str,
)
def test_logits_equal_a_plain_float64_network(tmp_path, keys):
    model, ids = model_of(tmp_path, **keys), random_ids()
    config = json.loads((tmp_path / "config.json").read_text())
    with torch.no_grad():
        logits = model(ids).logits
    for row in range(len(ids)):
        want = plain_logits(model.state_dict(), ids[row], config)
        torch.testing.assert_close(logits[row].double(), want, atol=1e-5, rtol=0)


def test_positions_and_head_rows_choose_from_the_full_logits(folder):
    model, ids = load_llada(folder, torch.float32), random_ids()
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        everything, some = model(ids).logits, model(ids, positions=wanted, head_rows=slice(20, 60)).logits
    torch.testing.assert_close(some, everything[wanted][:, 20:60], atol=1e-6, rtol=0)


def test_hidden_positions_change_no_logit_and_visible_ones_do(folder):
    model, ids = load_llada(folder, torch.float32), random_ids()
    seen = torch.ones_like(ids, dtype=torch.bool)
    seen[:, :3] = False
    other = ids.clone()
    other[:, :3] = 7
    with torch.no_grad():
        masked, masked_other = (model(i, attention_mask=seen).logits[:, 3:] for i in (ids, other))
        assert torch.equal(masked, masked_other)
        assert (model(ids).logits - model(other).logits)[:, 3:].abs().max() > 1e-2


def test_activation_checkpointing_changes_no_gradient(folder):
    model, ids = load_llada(folder, torch.float32), random_ids()
    gradients = []
    for on in (False, True):
        model.zero_grad()
        model.activation_checkpointing = on
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            loss = model(ids).logits.logsumexp(-1).sum()
        loss.backward()
        gradients.append(([p.grad.clone() for p in model.parameters()], len(kept)))
    (plain, many), (recomputed, few) = gradients
    assert few < many / 2
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_low_precision_keeps_rotary_and_norms_in_float32(folder):
    """Far out, bfloat16 angles would be wrong by whole turns: position 2,001 would be position 2,000."""
    model, ids = load_llada(folder, torch.bfloat16), random_ids(1, 6)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        near = model(ids, position_ids=torch.arange(6)).logits.float()
        far = model(ids, position_ids=torch.arange(6) + 2001).logits.float()
    exact = load_llada(folder, torch.float32)(ids).logits
    assert (near - exact).abs().mean() < 0.05
    assert (far - exact).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"block_type": "sequential"}, "block_type 'sequential' is not supported (only 'llama')"),
        ({"activation_type": "swiglu"}, "activation_type 'swiglu' is not supported (only 'silu')"),
        ({"alibi": True, "rope": False}, "rope False is not supported (only True)"),
        ({"attention_layer_norm": True}, "attention_layer_norm True is not supported (only False)"),
        ({"n_heads": 5}, "heads do not divide evenly (d_model 32, n_heads 5, key and value heads 4)"),
    ],
)
def test_another_network_is_refused(tmp_path, keys, line):
    write_config(tmp_path, **{**SMALL, **keys})
    with pytest.raises(UserError) as caught:
        read_config(tmp_path)
    assert f"{tmp_path / 'config.json'}: {line}" in str(caught.value).splitlines()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="no checkpoint there"):
        read_config(tmp_path / "nothing")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors: no such file"):
        load_llada(folder, torch.float32)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(folder)
    (folder / "config.json").write_text('{"d_model": 32}')
    with pytest.raises(UserError, match="`n_heads`, .* are missing; is it another model's?"):
        read_config(folder)


def test_missing_or_surplus_weights_are_refused(folder):
    index = folder / "model.safetensors.index.json"
    write_config(folder, **SMALL, n_layers=3)
    with pytest.raises(UserError, match=r"9 weights are missing, model\.transformer\.blocks\.2\.attn_norm"):
        load_llada(folder, torch.float32)
    write_config(folder, **SMALL, n_layers=1)
    with pytest.raises(UserError, match=r"9 weights are unexpected, model\.transformer\.blocks\.1\.attn_norm"):
        load_llada(folder, torch.float32)
    write_config(folder, **SMALL, d_model=64)
    with pytest.raises(UserError, match=r"wte.weight has shape \[64, 32\], but by config.json it is \[64, 64\]"):
        load_llada(folder, torch.float32)
    index.unlink()
    with pytest.raises(UserError, match="no weights there .model.safetensors, or shards and model.safetensors.index"):
        load_llada(folder, torch.float32)


@pytest.mark.parametrize(
    ("targets", "reached"),
    [
        (Mmada.projections, Mmada.projections),
        (("q_proj", "k_proj", "v_proj", "up_proj"), ("q_proj", "k_proj", "v_proj", "up_proj")),
    ],
)
def test_adapters_are_on_the_named_projections_of_every_block_only(folder, targets, reached):
    """The head is called ff_out as well and must stay without."""
    lora = Lora(rank=2, alpha=2, dropout=0.0, targets=list(targets))
    fields = dict(checkpoint=folder, tuning="lora", dtype="float32", activation_checkpointing=False)
    section = Mmada(name="mmada", lora=lora, prompt_length=257, vq_checkpoint=None, attention="masked", **fields)
    model = with_adapters(load_llada(folder, torch.float32), section.lora_keywords(), seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.model.transformer.") for name in trained}
    assert adapted == {f"blocks.{i}.{name}" for i in range(2) for name in targets}


def test_saved_model_is_read_back_with_all_keys_of_the_config(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved")
    model = load_llada(folder, torch.float32)
    model.save_pretrained(out)
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, out))
    assert {key: after.get(key) for key in before} == before
    again = load_llada(out, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_real_vocabulary_loads(mmada_folder):
    model = load_llada(mmada_folder, torch.float32)
    assert isinstance(model, LladaModel) and model.model["transformer"]["wte"].weight.shape == (134656, 32)


def test_test_checkpoints_are_reproducible(tmp_path, mmada_folder):
    again = mmada_checkpoint(tmp_path / "again")
    for file in mmada_folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name

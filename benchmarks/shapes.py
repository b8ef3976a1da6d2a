"""Models for measurements: micro as it is, tiny-width MMaDA and Lumina-DiMOO of real sequence and vocabulary, and 8B.

All but micro have random weights. Decoders and rewards of the real models are stand-ins, whose cost is no part of what
is measured. G rollouts per prompt, K updates, N image tokens.
"""

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LLADA = ("mmada", "lumina")


def widths(width: int, layers: int) -> dict[str, int]:
    """Keys of config.json."""
    return {"d_model": width, "n_layers": layers, "mlp_hidden_size": width * 3 // 2}


def tiny_checkpoint(model: str, folder: Path, width: int, layers: int) -> Path:
    """A random checkpoint with the real ids and vocabulary of `model`."""
    from helpers import llada_checkpoints

    return getattr(llada_checkpoints, f"{model}_checkpoint")(folder, **widths(width, layers))


def budget(updates: int) -> str:
    """HT-GRPO's updates by stage, in the default's proportions 2 : 4 : 2."""
    structure, refinement = updates // 2, updates // 4
    return f"{{global: {updates - structure - refinement}, structure: {structure}, refinement: {refinement}}}"


def real_shape(model: str, checkpoint: Path) -> list[str]:
    """Changes of settings for a tiny-width model: float32, small adapters, stand-ins.

    MMaDA's pads are seen, as in MaskGRPO, so that all methods read sequences of the same length.
    """
    changes = [
        f"model.checkpoint={checkpoint}",
        f"model.vq_checkpoint={checkpoint}",  # a stand-in, too
        "model.dtype=float32",
        "model.activation_checkpointing=false",
        "model.lora.rank=4",
        "model.lora.targets=[q_proj, k_proj, v_proj, up_proj]",  # those of MaskGRPO's list that exist
        *STAND_INS,
    ]
    return changes + ["model.attention=as-maskgrpo"] * (model == "mmada")


STAND_INS = [
    "prompts=[{format: micro}]",
    "eval=null",
    "reward.terms=[{name: clip, weight: 1.0}]",
]


def settings_of(model: str, method: str, changes: Sequence[str], updates: int | None = None):
    """Settings of MODEL and METHOD with `changes`, and K updates if that is not the default."""
    from htgrpo_ext.config import load_settings

    changes = list(changes)
    if updates is not None:
        changes.append(f"loop.updates_per_rollout={updates}")
        changes += [f"method.budget={budget(updates)}"] * (method == "htgrpo")
    files = [ROOT / "configs" / "model" / f"{model}.yaml", ROOT / "configs" / "method" / f"{method}.yaml"]
    return load_settings(files, changes)


def use_stand_ins() -> None:
    """In this process: brightness in place of the rewards, codes as grey pixels in place of the decoders."""
    import torch

    from helpers.upstream_stub import Brightness, StubDecoder
    from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone
    from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone
    from htgrpo_ext.maskgrpo import launch
    from htgrpo_ext.rewards import mix

    def pixels(self, codes_BN: torch.Tensor) -> torch.Tensor:
        return (codes_BN.float() / 8191 * 2 - 1)[:, None, None].expand(-1, 3, 16, -1)

    mix.load_scorer = lambda term, device: Brightness()
    launch.load_magvit = lambda folder: StubDecoder()
    for backbone in (MMaDABackbone, LuminaBackbone):
        setattr(backbone, "prepare_decoder", lambda self: None)  # noqa: B010, of classes with types of their own
        setattr(backbone, "decode", pixels)  # noqa: B010

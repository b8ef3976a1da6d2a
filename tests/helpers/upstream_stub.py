"""Stands in, in both runs of a parity test, for what has no weights here; and writes down what the loop computed."""

import torch
from torch import Tensor, nn


class StubDecoder(nn.Module):
    """In place of MAGVITv2, which takes 15 s an image on a CPU: codes to 'pixels' [B, 3, 32, 32]."""

    def decode_code(self, codes_BN: Tensor) -> Tensor:
        return (codes_BN.float() / 8191 * 2 - 1).view(len(codes_BN), 1, 32, 32).expand(-1, 3, -1, -1)


def brightness(levels: Tensor) -> list[float]:
    """A reward that random images differ in, from uint8 [B, 3, H, W]; exact, however images are batched."""
    return levels.flatten(1).double().mean(-1).tolist()


class Brightness:
    """In place of the model that `clip` is."""

    rewards = ("clip",)

    def score(self, prompts, images) -> dict[str, list[float]]:
        return {"clip": brightness(torch.stack(list(images)))}


def watch(trainer_class: type) -> dict[str, list]:
    """Keep every micro-step's loss, bit for bit, and every rollout batch's tokens, advantages and old log-probs."""
    seen: dict[str, list] = {"loss": [], "completion_ids": [], "advantages": [], "old_per_token_logps": []}
    loss, generate = trainer_class.compute_loss, trainer_class._generate_and_score_completions

    def watched_loss(self, *arguments, **keywords):
        value = loss(self, *arguments, **keywords)
        seen["loss"].append(value.detach().clone())
        return value

    def watched_generate(self, inputs):
        batch = generate(self, inputs)
        for key in seen.keys() - {"loss"}:
            seen[key].append(torch.as_tensor(batch[key]).clone())
        return batch

    trainer_class.compute_loss, trainer_class._generate_and_score_completions = watched_loss, watched_generate
    return seen


def save(path: str, seen: dict[str, list], model: nn.Module) -> None:
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    torch.save({"seen": seen, "weights": weights}, path)

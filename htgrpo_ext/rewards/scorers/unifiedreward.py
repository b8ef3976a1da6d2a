"""UnifiedReward (github.com/CodeGoat24/UnifiedReward): a vision-language model states a score of 1 to 5 in words.

The model runs here, through transformers, or behind an OpenAI-compatible endpoint (vLLM, SGLang). Both get the same
prompt and unchanged pictures, and decode greedily. An answer that is truncated, or does not have exactly one score in
the published form, gives NaN.

B images.
"""

import asyncio
import base64
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import encode_png, levels_image
from htgrpo_ext.rewards.published import CAPTION, SCORE

MODEL = "CodeGoat24/UnifiedReward-qwen-7b"
MOST_TOKENS = 512  # most tokens of an answer, as published
KEY = "UNIFIEDREWARD_API_KEY"  # environment variable: the endpoint's key, if it needs one
MODELS_TIMEOUT = 10.0  # seconds
MARK = re.compile(r"<\|\w+\|>|<image>")  # marks pictures and turns in these models' input


class Scorer:
    """Score of 1 to 5.

    prompt_file  text with `{caption}` once; launch/rewards/unifiedreward.sh makes the published one
    model        a checkpoint that transformers reads, a folder or a name; with an endpoint, its name there
    endpoint     http://HOST:PORT/v1 of a server that has the model; None: the model is loaded here
    dtype        bfloat16 | float16 | float32, of a model loaded here
    parallel     most requests to the endpoint at a time
    timeout      seconds for one batch at the endpoint; less than the run's own timeout

    Raises UserError if the model cannot be loaded, or the endpoint does not answer or does not have it.
    """

    rewards = ("unifiedreward",)

    def __init__(
        self,
        device: torch.device,
        prompt_file: str,
        model: str = MODEL,
        endpoint: str | None = None,
        dtype: str = "bfloat16",
        parallel: int = 16,
        timeout: float = 100.0,
    ):
        self.before, self.after = read_prompt(Path(prompt_file))
        self.model = Endpoint(endpoint, model, parallel, timeout) if endpoint else Local(device, model, dtype)

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py. Raises ValueError for a prompt with one of the model's own tokens."""
        captions = [prompt["prompt"] for prompt in prompts]
        for caption in captions:
            if MARK.search(caption):  # the model would take it for another picture or turn
                raise ValueError(f"a prompt holds one of the model's own tokens: {caption[:80]!r}")
        answers = self.model.answers([self.before + caption + self.after for caption in captions], images)
        return {"unifiedreward": [read_score(answer) for answer in answers]}


def read_prompt(file: Path) -> tuple[str, str]:
    """The prompt's text before and after the caption. Raises UserError."""
    try:
        parts = file.read_text(encoding="utf-8").split(CAPTION)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: no prompt can be read there ({error}) (option `prompt_file`)") from None
    if len(parts) != 2 or SCORE not in "".join(parts):
        raise UserError(f"{file}: a prompt has `{CAPTION}` once, and asks for `{SCORE}` (option `prompt_file`)")
    return parts[0], parts[1]


def read_score(answer: str | None) -> float:
    """The score at the end of an answer, or NaN. None stands for a truncated answer."""
    said = (answer or "").partition(SCORE)[2]  # does not match if the words come a second time
    found = re.fullmatch(r"\s*([1-5](?:\.[0-9]+)?)\s*", said)
    return float(found[1]) if found and float(found[1]) <= 5 else float("nan")


def content(picture: dict[str, Any], question: str) -> list[dict]:
    """One turn of the user with the picture first, as published."""
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


class Local:
    """The model on one device, through transformers. Raises UserError."""

    def __init__(self, device: torch.device, checkpoint: str, dtype: str):
        if dtype not in ("bfloat16", "float16", "float32"):
            raise UserError(f"reward unifiedreward: unknown dtype `{dtype}` (one of bfloat16, float16, float32)")
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise UserError(
                f"reward unifiedreward: {error}; launch/rewards/unifiedreward.sh makes the environment it needs"
            ) from None
        try:
            self.processor = AutoProcessor.from_pretrained(checkpoint)
            self.model, report = AutoModelForImageTextToText.from_pretrained(
                checkpoint, torch_dtype=getattr(torch, dtype), output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            said = one_line(error, 300)
            raise UserError(f"reward unifiedreward: cannot load {checkpoint}: {said}") from None
        if missing := report["missing_keys"] or report["mismatched_keys"]:
            raise UserError(
                f"reward unifiedreward: {checkpoint}: {len(missing)} weights missing or of another size: "
                f"{sorted(missing)[0]}, .."
            )
        self.processor.tokenizer.padding_side = "left"
        self.model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def answers(self, questions: Sequence[str], images: Sequence[Tensor]) -> list[str | None]:
        """The answer to each question; None if it is truncated."""
        texts = [
            self.processor.apply_chat_template(
                content({"type": "image"}, question), tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        pictures = [[levels_image(image)] for image in images]
        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        whole = self.model.generate(
            **inputs, do_sample=False, temperature=None, top_p=None, top_k=None,
            max_new_tokens=MOST_TOKENS, pad_token_id=self.processor.tokenizer.pad_token_id,
        )  # fmt: skip
        new = whole[:, inputs["input_ids"].shape[1] :]
        ends = torch.tensor(self.model.generation_config.eos_token_id, device=new.device)
        ended = torch.isin(new, ends).any(1).tolist()
        decoded = self.processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text if done else None for text, done in zip(decoded, ended, strict=True)]


class Endpoint:
    """The model behind an OpenAI-compatible server. Raises UserError."""

    def __init__(self, url: str, model: str, parallel: int, timeout: float):
        self.url, self.model, self.parallel, self.timeout = url.rstrip("/"), model, parallel, timeout
        try:
            from htgrpo_ext.rewards import wire
        except ImportError:
            raise UserError("reward unifiedreward: an endpoint needs httpx (pip install httpx)") from None
        self.wire = wire
        try:
            served = asyncio.run(self._models())
        except Exception as error:  # of the url, the connection or the reply
            said = one_line(error) or type(error).__name__
            raise UserError(f"reward unifiedreward: no list of models at {self.url}/models ({said})") from None
        if model not in served:
            raise UserError(f"reward unifiedreward: {self.url} has no {model} but {one_line(', '.join(served))}")

    def answers(self, questions: Sequence[str], images: Sequence[Tensor]) -> list[str | None]:
        """As `Local`, in bounded time. Raises ValueError for a refusal, other errors may be transient."""
        return asyncio.run(self._answers(questions, images))  # cancels the other requests when one fails

    def _client(self) -> Any:
        return self.wire.http_client(os.environ.get(KEY), self.parallel)

    async def _models(self) -> list[str]:
        async with asyncio.timeout(MODELS_TIMEOUT), self._client() as http:
            status, reply, _ = await self.wire.request(http, "GET", f"{self.url}/models")
        if status != 200:
            raise ValueError(f"status {status}")
        return [str(entry["id"]) for entry in json.loads(reply)["data"]]

    async def _answers(self, questions: Sequence[str], images: Sequence[Tensor]) -> list[str | None]:
        try:
            async with asyncio.timeout(self.timeout), self._client() as http:
                asked = (self._ask(http, *each) for each in zip(questions, images, strict=True))
                return await asyncio.gather(*asked)
        except TimeoutError:
            raise RuntimeError(f"no answer from {self.url} within {self.timeout:g} s") from None

    async def _ask(self, http: Any, question: str, image: Tensor) -> str | None:
        picture = {"url": f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"}
        body = {
            "model": self.model,
            "messages": content({"type": "image_url", "image_url": picture}, question),
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
        }
        url = f"{self.url}/chat/completions"
        try:
            status, reply, _ = await self.wire.request(http, "POST", url, json.dumps(body).encode())
            if status == 200:
                choice = json.loads(reply)["choices"][0]
                ended, answer = choice["finish_reason"] == "stop", choice["message"]["content"]
                if not isinstance(answer, str):
                    raise TypeError(f"the answer is {answer!r}")
                return answer if ended else None
        except (self.wire.BadReply, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            # Not the picture's fault: a retry may help.
            raise RuntimeError(f"{self.url}: a reply that cannot be read ({one_line(repr(error))})") from None
        lasting = 400 <= status < 500 and status not in self.wire.TRANSIENT
        said = f"{self.url} says {status}: {one_line(' '.join(reply.decode(errors='replace').split()))}"
        raise (ValueError if lasting else RuntimeError)(said)

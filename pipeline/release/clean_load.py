"""Loads a release as a stranger would, and compares its logits with those of the weights it was made from.

A program of its own, run by `verification` as `python -I -S clean_load.py REQUEST`: -S leaves out every .pth file, so
an editable install of this project is not seen; the site-packages folders are added by hand, and what is installed
there of this project is blocked. It imports nothing of the project, which is the point.

REQUEST is a JSON file with `site_packages`, `blocked` (top-level packages), `release`, `tensors` (a torch file with
`inputs` int64 [B, n], `logits` float32 [B, n, vocabulary], `depths` int64 [B, n], and `depth_logits` float32
[K, b, n, vocabulary], those of the first b rows with every token at depth 1, ..., K), `texts` and `ids` (texts, and the
tokens that the training's tokenizer makes of them), `plain_halting` (the setting that logits were computed with),
`threads`, and `report`: the JSON file that gets `hashes` (of the files that were loaded), `largest_difference`,
`differing_depths`, `decoding_difference`, `by_depth`, `differing_text` and `generated`.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.abc
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

DECODED_TOKENS = 8
"""How many of the last tokens are read one by one."""


class Blocker(importlib.abc.MetaPathFinder):
    """Makes packages impossible to import, wherever they are installed."""

    def __init__(self, blocked: list[str]) -> None:
        self._blocked = blocked

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._blocked:
            raise ModuleNotFoundError(f"{fullname} does not exist where a release is loaded", name=fullname)
        return None


def main(request_path: str) -> None:
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    sys.path += request["site_packages"]
    sys.meta_path.insert(0, Blocker(request["blocked"]))
    for package in request["blocked"]:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{package} can be imported: this process is not clean")

    gc.disable()  # of what the next lines make nearly all stays, and looking through it takes a fifth of their time
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gc.enable()
    torch.set_num_threads(request["threads"])
    release = request["release"]
    # The tokenizer too: transformers reads the configuration first, and asks on the terminal where it may not.
    tokenizer = AutoTokenizer.from_pretrained(release, trust_remote_code=True)
    # In fp32, as the other side: half precision would round the same weights differently with every kernel.
    model = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True, dtype=torch.float32).eval()
    tensors = torch.load(request["tensors"], weights_only=True)
    configured = model.config.halting
    model.config.halting = request["plain_halting"]
    with torch.inference_mode():
        output = model(tensors["inputs"])
    model.config.halting = configured
    decoded = decode(model, tensors["inputs"], tensors["depths"])
    by_depth = []
    for number, expected in enumerate(tensors["depth_logits"], start=1):
        rows = tensors["inputs"][: len(expected)]
        depths = torch.full_like(rows, number)
        model.config.halting = request["plain_halting"]
        with torch.inference_mode():
            plain = model(rows, imposed_depths=depths).logits
        model.config.halting = configured
        found = {"depth": number, "difference": (plain.float() - expected).abs().max().item()}
        found["decoding_difference"] = (decode(model, rows, depths).float() - expected).abs().max().item()
        by_depth.append(found)
    differing = [
        text
        for text, ids in zip(request["texts"], request["ids"], strict=True)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != ids
    ]
    # NaN stays NaN in a maximum, and is no difference that any tolerance allows.
    difference = (output.logits.float() - tensors["logits"]).abs().max().item()
    differing_depths = int((output.depths != tensors["depths"]).sum())
    decoding_difference = (decoded.float() - tensors["logits"]).abs().max().item()
    # As a user does: in the precision of the file, a few tokens. Three are enough to see that generate() runs.
    loaded: Any = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True, dtype="auto").eval()
    prompt = tensors["inputs"][:1, :8]
    generated, _ = loaded.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False, return_depths=True
    )
    report = {
        "hashes": {path.name: sha256(path) for path in Path(release).iterdir() if path.is_file()},
        "largest_difference": difference,
        "differing_depths": differing_depths,
        "decoding_difference": decoding_difference,
        "by_depth": by_depth,
        "differing_text": differing[0] if differing else None,
        "generated": tokenizer.decode(generated[0, prompt.shape[1] :]),
    }
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def decode(model: Any, inputs: Any, depths: Any) -> Any:
    """Logits [B, n, vocabulary] as `generate()` comes to them: a prompt, then token by token from the cache.

    The depths are given: where a gate is a hair from its threshold, another order of summation may decide otherwise.
    """
    import torch

    length = inputs.shape[1]
    ends = range(max(length - DECODED_TOKENS, 1), length + 1)
    logits, cache, start = [], None, 0
    with torch.inference_mode():
        for end in ends:
            piece = slice(start, end)
            output = model(inputs[:, piece], past_key_values=cache, use_cache=True, imposed_depths=depths[:, piece])
            logits.append(output.logits)
            cache, start = output.past_key_values, end
    return torch.cat(logits, dim=1)


if __name__ == "__main__":
    main(sys.argv[1])

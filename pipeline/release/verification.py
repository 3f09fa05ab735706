"""A release is what its checkpoint was, or it is refused: loaded in a fresh process, its logits must agree.

Twice: on the plain path, and as the release is used, which skips halted tokens and decodes from a cache. Both with the
depths that the gates give, and with every token at depth 1, ..., K, so that no pass goes unseen because few tokens come
to it. The tokenizer must make the same tokens of the same texts, and the files be those that were written.

Both sides run in fp32 on the CPU with the same number of threads: the training's weights, rounded to the release's
precision, here; the released files there. On the plain path the numbers going in are then equal bit for bit, and so is
the arithmetic; the tolerance only leaves room for another order of summation (the weights lie elsewhere in memory,
which may pick another kernel). That is about 1e-5 on logits of size 10 for the largest of our networks; a lost tensor,
a swapped one or a changed field of the configuration moves logits by far more than 1e-3. Skipping and caches sum in
another order everywhere, in every pass and layer, so they are allowed more; an entry too many or too few in a cache
moves logits by far more than that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from pipeline.errors import WorldError
from pipeline.evaluation.halting import run_as
from pipeline.model import AdaPonderForCausalLM
from pipeline.release.provenance import file_hashes

TOLERANCE = 1e-4
"""Largest difference of a logit on the plain path, absolute."""
DECODING_TOLERANCE = 1e-3
"""Largest difference of a logit between plain path and decoding, as a share of the largest logit or of 1."""
OUR_PACKAGES = ("pipeline", "tokenization", "launch", "ds_configs")
IMPOSED_ROWS = 2
"""Rows on which every depth is compared."""
TEXTS = (" Naïve café, 思考 and 🙂:\n\n\tdef f(x):  return x ** 2  # 3.14 \u2014 end", "<|endoftext|> <|padding|>")
"""What the tokenizer is asked besides the rows' own texts: spaces, letters of several bytes, marks."""
TIMEOUT_SECONDS = 3600
CLEAN_LOAD = Path(__file__).with_name("clean_load.py")
# What would lead the fresh process back to this machine's caches, tokens or modules.
_FOREIGN = ("PYTHON", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")


@dataclass(frozen=True)
class Verification:
    """What the fresh process found."""

    load_difference: float
    """Largest difference of a logit between the rounded weights here and the release there; at most TOLERANCE."""
    decoding_difference: float
    """Largest difference of a logit between the rounded weights on the plain path here and the release there as it is
    used: halted tokens skipped, the last ones read one by one from the cache."""
    rounding_difference: float
    """Largest difference of a logit between the training's own weights and the rounded ones, both here."""
    depth_difference: float
    """The larger of both with every token at one depth, the largest over depths 1..K."""
    tokens: int
    """Tokens compared."""
    generated: str
    """Three tokens after the first eight inputs, as text."""
    hashes: dict[str, str]
    """SHA-256 of the files that were loaded there, by name."""


@torch.inference_mode()
def logits_of(model: AdaPonderForCausalLM, inputs: torch.Tensor) -> torch.Tensor:
    """Logits float32 [B, n, vocabulary] of a network in fp32 on the CPU, by the plain path; inputs: int64 [B, n]."""
    with run_as(model, _plain(model)):
        return model.eval()(inputs).logits


def verify(
    model: AdaPonderForCausalLM, release: Path, inputs: torch.Tensor, trained_logits: torch.Tensor, log: Path
) -> Verification:
    """Load `release` where this project is not installed and compare it with `model`.

    model: on the CPU, the training's weights rounded to the release's precision; it is cast to fp32 in place. inputs:
    int64 [B, n], at least 8 tokens a row. trained_logits: `logits_of` the weights before they were rounded. log: file
    that gets all the fresh process prints. Raises `WorldError` with the largest difference when logits or depths
    differ, by the plain path or in decoding, with the file that is another there, with the text that becomes other
    tokens, and with the last line of the log when loading fails.
    """
    torch.nn.Module.to(model, dtype=torch.float32)
    written = file_hashes(release)
    passes = model.config.max_passes if _has_depths(model) else 0
    with torch.inference_mode(), run_as(model, _plain(model)):
        output = model.eval()(inputs)
        some = inputs[:IMPOSED_ROWS]
        at_depths = [
            model(some, imposed_depths=torch.full_like(some, depth)).logits.float() for depth in range(1, passes + 1)
        ]
    texts, ids = _tokenized(release, inputs)
    with tempfile.TemporaryDirectory(prefix="adaponder-release-") as scratch:
        folder = Path(scratch)
        tensors, report = folder / "tensors.pt", folder / "report.json"
        # Copies: a view would take its whole base tensor along, an inference tensor cannot be pickled.
        told = {"inputs": inputs, "logits": output.logits.float(), "depths": output.depths}
        told["depth_logits"] = torch.stack(at_depths) if at_depths else torch.empty(0)
        torch.save({name: tensor.clone() for name, tensor in told.items()}, tensors)
        request = {
            "site_packages": [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")],
            "blocked": OUR_PACKAGES,
            "release": str(release),
            "tensors": str(tensors),
            "texts": texts,
            "ids": ids,
            "plain_halting": _plain(model),
            "threads": torch.get_num_threads(),
            "report": str(report),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _run(folder, log)
        found = json.loads(report.read_text(encoding="utf-8"))
    if other := [
        name for name in sorted({*written, *found["hashes"]}) if written.get(name) != found["hashes"].get(name)
    ]:
        raise WorldError(f"release refused: {release / other[0]} was another file in the fresh process than here")
    if found["differing_text"] is not None:
        raise WorldError(
            f"release refused: loaded afresh, the tokenizer of {release} makes other tokens than the training's of "
            f"{found['differing_text'][:60]!r}"
        )
    difference = found["largest_difference"]
    if not difference <= TOLERANCE or found["differing_depths"]:
        raise WorldError(
            f"release refused: loaded afresh, {release} gives logits that differ from those of the weights it was made "
            f"from by up to {difference:.3g} (allowed: {TOLERANCE:g}), and {found['differing_depths']} of "
            f"{inputs.numel()} tokens have another depth"
        )
    decoding, allowed = found["decoding_difference"], DECODING_TOLERANCE * max(1.0, output.logits.abs().max().item())
    if not decoding <= allowed:
        raise WorldError(
            f"release refused: loaded afresh, {release} decodes with logits that differ from those of the weights it "
            f"was made from by up to {decoding:.3g} (allowed: {allowed:.3g})"
        )
    depth_difference = 0.0
    # A mere depth has larger logits than the gates' mixture of them: each is measured by its own.
    for at, logits in zip(found["by_depth"], at_depths, strict=True):
        for what, tolerance in (("difference", TOLERANCE), ("decoding_difference", DECODING_TOLERANCE)):
            allowed = tolerance * max(1.0, logits.abs().max().item() if what == "decoding_difference" else 1.0)
            if not at[what] <= allowed:
                how = "gives" if what == "difference" else "decodes with"
                raise WorldError(
                    f"release refused: loaded afresh, with every token at depth {at['depth']}, {release} {how} logits "
                    f"that differ from those of the weights it was made from by up to {at[what]:.3g} (allowed: "
                    f"{allowed:.3g})"
                )
            depth_difference = max(depth_difference, at[what])
    return Verification(
        load_difference=difference,
        decoding_difference=decoding,
        rounding_difference=(output.logits - trained_logits).abs().max().item(),
        depth_difference=depth_difference,
        tokens=inputs.numel(),
        generated=found["generated"],
        hashes=found["hashes"],
    )


def _plain(model: AdaPonderForCausalLM) -> str:
    """The `halting` by which the network gives the same from every pass over all tokens."""
    return "masked" if model.config.skips else model.config.halting


def _has_depths(model: AdaPonderForCausalLM) -> bool:
    """Whether a depth can be imposed: elsewhere every token takes every pass."""
    return model.config.halts and model.config.num_gates > 0


def _tokenized(release: Path, inputs: torch.Tensor) -> tuple[list[str], list[list[int]]]:
    """Texts, and what the training's tokenizer makes of them, which `export` has compared with the manifest's."""
    tokenizer = Tokenizer.from_file(str(release / "tokenizer.json"))
    texts = [*tokenizer.decode_batch(inputs.tolist(), skip_special_tokens=False), *TEXTS]
    return texts, [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _run(folder: Path, log: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    # The code is copied into HF_HOME on loading; a folder of its own has no copy from before.
    own = {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(CLEAN_LOAD), str(folder / "request.json")],
                env={**kept, **own},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WorldError(f"release refused: it did not load within {TIMEOUT_SECONDS} s (see {log})") from error
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {done.returncode}"
        raise WorldError(f"release refused: it does not load in a fresh process: {last} (see {log})")

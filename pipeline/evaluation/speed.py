"""The suite `speed`: what halting saves on this machine, in tokens a second and in memory.

The same network reads a prompt and writes after it, in turn with tokens halting and with all passes over all tokens, so
that a machine's ups and downs meet both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from pipeline.data.rows import RowReader
from pipeline.errors import UserError
from pipeline.evaluation.figure import BLUE, DPI, ORANGE, new_figure
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.progress import rows_progress
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import Suite
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM

HALTING, FULL_DEPTH = "halting", "full depth"
PREFILL, DECODING = "prefill", "decoding"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Entry):
    """Prefill or decoding, with tokens halting or at full depth."""

    what: str
    how: str
    tokens: int
    """In a run, over all rows."""
    seconds: list[float]
    """Of each run."""
    cache_bytes: int
    """Of keys and values at the end."""
    peak_bytes: int | None
    """Of the GPU's memory; None on a CPU."""
    mean_depth: float | None
    """Passes a token; None where tokens are not told apart."""

    @property
    def tokens_per_second(self) -> float:
        """Of the median run."""
        return self.tokens / statistics.median(self.seconds)


class Speed(_Entry):
    """The content of metrics.json."""

    schema_version: Literal[1] = 1
    identity: Identity
    rows: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    threads: int
    """CPU threads of the process."""
    measured: list[Measured]
    seconds: float
    device: str

    def ratios(self, what: str) -> list[float]:
        """Time with halting over time at full depth, round by round."""
        halting, full = (self.of(what, how).seconds for how in (HALTING, FULL_DEPTH))
        return [one / other for one, other in zip(halting, full, strict=True)]

    def of(self, what: str, how: str) -> Measured:
        return next(each for each in self.measured if (each.what, each.how) == (what, how))


class SpeedSuite(Suite):
    """Prefill and decoding of validation text, both ways in turn."""

    name = "speed"
    found = Speed

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.evaluate.speed.model_dump(mode="json")

    def judge(self, subject: Subject, identity: Identity, output: Path) -> Speed:
        found = measure_speed(subject, identity)
        _write_plot(output, found)
        return found

    def named(self, found: Speed, subject: Subject) -> dict[str, float]:
        named = {}
        for what in (PREFILL, DECODING):
            for how in (HALTING, FULL_DEPTH):
                each = found.of(what, how)
                key = f"{what}/{how.replace(' ', '_')}"
                named[f"{key}/tokens_per_second"] = each.tokens_per_second
                named[f"{key}/cache_bytes"] = float(each.cache_bytes)
                if each.peak_bytes is not None:
                    named[f"{key}/peak_bytes"] = float(each.peak_bytes)
            named[f"{what}/time_over_full_depth"] = statistics.median(found.ratios(what))
        return named

    def tables(self, found: Speed) -> list[Table]:
        title = (
            f"speed on {found.device}, {found.rows} rows, {found.prompt_tokens} tokens read and {found.new_tokens} "
            f"written, {found.rounds} rounds"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for name in ("tokens/s", "over full depth", "quartiles", "mean depth", "cache, MB"):
            table.add_column(name, justify="right")
        for each in found.measured:
            ratio, spread = "", ""
            if each.how == HALTING:
                low, middle, high = statistics.quantiles(found.ratios(each.what), n=4)
                ratio, spread = f"{middle:.3f} of the time", f"{low:.3f} to {high:.3f}"
            depth = "" if each.mean_depth is None else f"{each.mean_depth:.3f}"
            numbers = f"{each.tokens_per_second:,.0f}", ratio, spread, depth, f"{each.cache_bytes / 1e6:.1f}"
            table.add_row(f"{each.what}, {each.how}", *numbers)
        return [table]


@torch.inference_mode()
def measure_speed(subject: Subject, identity: Identity) -> Speed:
    """Raises `UserError` where validation rows are fewer or shorter than what is to be read and written."""
    began = time.monotonic()
    section, model = subject.recipe.evaluate.speed, subject.model
    prompt = min(section.prompt_tokens, subject.manifest.seq_len)
    if prompt + section.new_tokens > model.config.max_tokens:
        pauses = f", {model.config.positions_per_token} a token" if model.config.pause_tokens else ""
        raise UserError(
            f"evaluate.speed: {prompt} tokens read and {section.new_tokens} written are beyond the network's "
            f"{model.config.max_position_embeddings} positions{pauses}"
        )
    key, count = max(subject.validation_rows(section.rows).items(), key=lambda item: item[1])
    with RowReader(subject.shards, subject.manifest, key) as reader:
        full_rows = count - (count == reader.rows and reader.padding_tokens > 0)
        if full_rows < section.rows:
            raise UserError(f"evaluate.speed.rows {section.rows}: {key} has {full_rows} whole rows")
        inputs = reader.batch(range(section.rows))[0][:, :prompt].to(model.device)
    ways = {HALTING: inference_halting(model.config), FULL_DEPTH: "none"}
    times: dict[tuple[str, str], list[float]] = {(what, how): [] for what in (PREFILL, DECODING) for how in ways}
    last: dict[str, _Run] = {}
    with rows_progress("speed", section.rounds + 1) as advance:
        for number in range(section.rounds + 1):
            for how in ways if number % 2 else reversed(ways):
                with run_as(model, ways[how]):
                    last[how] = _run(model, inputs, section.new_tokens)
                if number:  # the first round warms up
                    times[PREFILL, how].append(last[how].prefill_seconds)
                    times[DECODING, how].append(last[how].decoding_seconds)
            advance(1)
    sizes = {PREFILL: inputs.numel(), DECODING: section.rows * section.new_tokens}
    return Speed(
        identity=identity,
        rows=section.rows,
        prompt_tokens=prompt,
        new_tokens=section.new_tokens,
        rounds=section.rounds,
        threads=torch.get_num_threads(),
        measured=[
            Measured(
                what=what,
                how=how,
                tokens=sizes[what],
                seconds=times[what, how],
                cache_bytes=last[how].cache_bytes[what],
                peak_bytes=last[how].peak_bytes[what],
                mean_depth=last[how].mean_depth[what],
            )
            for what in (PREFILL, DECODING)
            for how in ways
        ],
        seconds=round(time.monotonic() - began, 3),
        device=subject.device_name,
    )


class _Run:
    """One prompt read and continued greedily; sizes and depths by what was done."""

    def __init__(self) -> None:
        self.prefill_seconds = self.decoding_seconds = 0.0
        self.cache_bytes: dict[str, int] = {}
        self.peak_bytes: dict[str, int | None] = {}
        self.mean_depth: dict[str, float | None] = {}


def _run(model: AdaPonderForCausalLM, inputs: torch.Tensor, new_tokens: int) -> _Run:
    found, device, cache = _Run(), inputs.device, model.new_cache()
    depths: list[torch.Tensor] = []

    def prefill() -> torch.Tensor:
        output = model(inputs, past_key_values=cache, logits_to_keep=1)
        depths.append(output.depths)
        return output.logits[:, -1].argmax(-1, keepdim=True)

    token: list[torch.Tensor] = []
    found.prefill_seconds = _timed(device, lambda: token.append(prefill()))
    _note(found, PREFILL, cache, depths, device)
    depths.clear()

    def decode() -> None:
        following = token[0]
        for _ in range(new_tokens):
            output = model(following, past_key_values=cache, logits_to_keep=1)
            depths.append(output.depths)
            following = output.logits[:, -1].argmax(-1, keepdim=True)

    found.decoding_seconds = _timed(device, decode)
    _note(found, DECODING, cache, depths, device)
    return found


def _timed(device: torch.device, do: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _note(found: _Run, what: str, cache: Any, depths: list[torch.Tensor], device: torch.device) -> None:
    found.cache_bytes[what] = _bytes_of(cache)
    found.peak_bytes[what] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    found.mean_depth[what] = float(torch.cat(depths, dim=1).float().mean())


def _bytes_of(cache: Any) -> int:
    """Keys and values that the cache holds, of either kind of cache."""
    if hasattr(cache, "nbytes"):
        return int(cache.nbytes)
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _write_plot(folder: Path, found: Speed) -> None:
    """speed.png: tokens a second, both ways."""
    told = (
        f"step {found.identity.step:,}, {found.device}, {found.threads} threads; {found.rows} rows, "
        f"{found.prompt_tokens} tokens read, {found.new_tokens} written; medians of {found.rounds}"
    )
    figure, axes = new_figure("Speed with and without halting", told)
    for shift, how, color, hatch in ((-0.2, HALTING, BLUE, ""), (0.2, FULL_DEPTH, ORANGE, "//")):
        speeds = [found.of(what, how).tokens_per_second for what in (PREFILL, DECODING)]
        places = [number + shift for number in range(2)]
        bars = axes.bar(places, speeds, width=0.38, color=color, hatch=hatch, edgecolor="white", label=how)
        axes.bar_label(bars, fmt="%.0f", fontsize=8.5, padding=2)
    axes.set_xticks(range(2), [PREFILL, DECODING])
    axes.set_yscale("log")
    axes.margins(y=0.2)
    axes.set_ylabel("tokens a second (log scale)")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    figure.savefig(folder / "speed.png", dpi=DPI)

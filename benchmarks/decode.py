"""Writing token by token: time by mean depth over the time at full depth, and the cache's bytes.

    python -m benchmarks.decode                 one row: beside the ratio of multiply-accumulates
    python -m benchmarks.decode --rows 8        bound by reading weights: beside the ratio of passes that were run

A pass is run for a batch where any of its rows is active.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measurement import Report, arguments, interleaved, learned_arguments, parsed, ratios, spread
from benchmarks.shapes import config_of, depths_of_mean, histogram, network, released, tokens_of
from pipeline.model.flops import inference_work, mean_keys


def main() -> None:
    parser = arguments("Decoding with halted tokens skipped.")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=512, help="tokens a row that are in the cache before")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a row that are written in a run")
    parser.add_argument("--mean-depths", type=float, nargs="+", default=[1.5, 2.5, 3.2, 3.8])
    learned_arguments(parser)
    chosen = parsed(parser)
    model = released(chosen) if chosen.model else network(config_of(chosen.shape), chosen)
    config = model.config
    config.halting = "skip"
    shape = (chosen.rows, chosen.context + chosen.tokens)
    tokens = tokens_of(chosen, model, shape)

    patterns = {"full depth": torch.full(shape, config.max_passes)}
    for mean in chosen.mean_depths:
        counts = (chosen.rows * chosen.context, chosen.rows * chosen.tokens)
        drawn = [depths_of_mean(mean, config.max_passes, count, chosen.seed) for count in counts]
        patterns[f"mean depth {mean}"] = torch.cat([part.view(chosen.rows, -1) for part in drawn], dim=1)
    if chosen.model:
        patterns["learned gates"] = _learned_depths(model, tokens)
    caches = {name: _read(model, tokens, depths, chosen) for name, depths in patterns.items()}
    sides = {name: _writer(model, tokens, depths, caches[name], chosen) for name, depths in patterns.items()}
    plain = patterns["full depth"]
    config.halting = "masked"
    masked_cache = _read(model, tokens, plain, chosen)
    config.halting = "skip"
    sides["masked path, full depth"] = _writer(model, tokens, plain, masked_cache, chosen, halting="masked")
    full_bytes = _bytes_of_full_caches(model, chosen)
    seconds = interleaved(sides, chosen.rounds, chosen.device)
    held = {name: cache.nbytes for name, cache in caches.items()}  # grown token by token, spare room included

    report = Report(
        "decode",
        chosen,
        {"rows": chosen.rows, "context": chosen.context, "tokens": chosen.tokens, "max_passes": config.max_passes},
    )
    keys = mean_keys(1, chosen.context + chosen.tokens // 2)
    for name, depths in patterns.items():
        written = depths[:, chosen.context :]
        run = float(written.amax(0).double().mean()) / config.max_passes
        work = inference_work(config, keys, histogram(written, config.max_passes)).total
        of_work = work / inference_work(config, keys, [0] * (config.max_passes - 1) + [1]).total
        all_mean = float(depths.double().mean())
        report.line(
            name,
            mean_depth=round(float(written.double().mean()), 4),
            milliseconds_per_step=spread([1e3 * value / chosen.tokens for value in seconds[name]]),
            time_over_full_depth=spread(ratios(seconds[name], seconds["full depth"])),
            multiply_accumulates_over_full_depth=round(of_work, 4),
            passes_run_over_full_depth=round(run, 4),
            bound=round((of_work if chosen.rows == 1 else run) + 0.05, 4),
            cache_bytes_over_full_caches=round(held[name] / full_bytes, 4),
            cache_bound=round(all_mean / config.max_passes + 0.05, 4),
        )
    report.line(
        "skipping over masked",
        milliseconds_per_step={
            "skip": spread([1e3 * value / chosen.tokens for value in seconds["full depth"]]),
            "masked": spread([1e3 * value / chosen.tokens for value in seconds["masked path, full depth"]]),
        },
        time_over_masked=spread(ratios(seconds["full depth"], seconds["masked path, full depth"])),
        bound=1.03,
    )
    report.close()


@torch.inference_mode()
def _read(model: Any, tokens: torch.Tensor, depths: torch.Tensor, chosen: Any) -> Any:
    """A cache that holds the context."""
    cache = model.new_cache()
    imposed = depths[:, : chosen.context].to(chosen.device)
    model(tokens[:, : chosen.context], imposed_depths=imposed, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.inference_mode()
def _learned_depths(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What the gates decide for these tokens; imposed as they are, it is the same again."""
    return model(tokens, logits_to_keep=1).depths.cpu()


def _writer(
    model: Any, tokens: torch.Tensor, depths: torch.Tensor, cache: Any, chosen: Any, halting: str = "skip"
) -> Any:
    """Feeds the tokens after the context one by one and takes them back: generate()'s forwards without its own work."""
    imposed = depths.to(chosen.device)

    def run() -> None:
        model.config.halting = halting
        with torch.inference_mode():
            for place in range(chosen.context, chosen.context + chosen.tokens):
                step = slice(place, place + 1)
                model(tokens[:, step], imposed_depths=imposed[:, step], past_key_values=cache, logits_to_keep=1)
            cache.crop(-chosen.tokens)

    return run


def _bytes_of_full_caches(model: Any, chosen: Any) -> int:
    """K caches of all tokens."""
    config = model.config
    a_token = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    return config.max_passes * chosen.rows * (chosen.context + chosen.tokens) * a_token


if __name__ == "__main__":
    main()

"""Reading a prompt: time by mean depth, over the time at full depth, beside the ratio of multiply-accumulates.

    python -m benchmarks.prefill

`skip/cache` and its like read the prompt as `generate()` does: a cache is filled, and logits are for the last token.
"""

from __future__ import annotations

import torch

from benchmarks.measurement import Report, arguments, interleaved, learned_arguments, parsed, ratios, spread
from benchmarks.shapes import config_of, depths_of_mean, histogram, network, released, tokens_of
from pipeline.model.flops import inference_work, mean_keys


def main() -> None:
    parser = arguments("Prefill with halted tokens skipped.")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512, help="tokens a row")
    parser.add_argument("--mean-depths", type=float, nargs="+", default=[1.5, 2.5, 3.2, 3.8])
    learned_arguments(parser)
    chosen = parsed(parser)
    model = released(chosen) if chosen.model else network(config_of(chosen.shape), chosen)
    passes, shape = model.config.max_passes, (chosen.rows, chosen.tokens)
    tokens = tokens_of(chosen, model, shape)

    def side(halting: str, depths: torch.Tensor | None, cached: bool = True):
        def run() -> torch.Tensor:
            model.config.halting = halting
            with torch.inference_mode():
                return model(tokens, imposed_depths=depths, use_cache=cached, logits_to_keep=1).depths

        return run

    full = torch.full(shape, passes, device=chosen.device)
    patterns = {"full depth": full}
    for mean in chosen.mean_depths:
        drawn = depths_of_mean(mean, passes, chosen.rows * chosen.tokens, chosen.seed)
        patterns[f"mean depth {mean}"] = drawn.view(shape).to(chosen.device)
    sides = {name: side("skip", depths) for name, depths in patterns.items()}
    if chosen.model:
        sides["learned gates"] = side("skip", None)
        patterns["learned gates"] = sides["learned gates"]()
    sides["masked path, full depth"] = side("masked", full)
    sides["masked path, full depth, no cache"] = side("masked", full, cached=False)
    sides["full depth, no cache"] = side("skip", full, cached=False)
    seconds = interleaved(sides, chosen.rounds, chosen.device)

    report = Report("prefill", chosen, {"rows": chosen.rows, "tokens": chosen.tokens, "max_passes": passes})
    work = {
        name: inference_work(model.config, mean_keys(chosen.tokens), histogram(depths, passes), 1 / chosen.tokens).total
        for name, depths in patterns.items()
    }
    for name, depths in patterns.items():
        ratio, of_work = ratios(seconds[name], seconds["full depth"]), work[name] / work["full depth"]
        report.line(
            name,
            mean_depth=round(float(depths.double().mean()), 4),
            seconds=spread(seconds[name]),
            time_over_full_depth=spread(ratio),
            multiply_accumulates_over_full_depth=round(of_work, 4),
            bound=round(of_work + 0.05, 4),
        )
    for cache in ("", ", no cache"):
        plain = f"masked path, full depth{cache}"
        report.line(
            f"skipping over masked{cache}",
            seconds={"skip": spread(seconds[f"full depth{cache}"]), "masked": spread(seconds[plain])},
            time_over_masked=spread(ratios(seconds[f"full depth{cache}"], seconds[plain])),
            bound=1.03,
        )
    report.close()


if __name__ == "__main__":
    main()

"""Time of a training step: vocabulary work in chunks and activation checkpointing over all logits at once.

python -m benchmarks.training_step
"""

from __future__ import annotations

from benchmarks.measurement import Report, arguments, interleaved, parsed, ratios, spread
from benchmarks.shapes import config_of
from benchmarks.training_sides import CHUNK, SIDES, training_steps
from pipeline.model.flops import mean_keys, training_work

BOUNDS = {"logits in chunks": 1.15, "logits in chunks, activation functions recomputed": 1.15}


def main() -> None:
    parser = arguments("Time of a training step.")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a row")
    parser.add_argument("--all", action="store_true", help="every kind of activation checkpointing")
    chosen = parsed(parser)
    seconds = interleaved(training_steps(chosen, single_pass=False), chosen.rounds, chosen.device)
    keys, config = mean_keys(chosen.tokens), config_of(chosen.shape)
    whole = training_work(config, keys).total.total
    report = Report("training_step", chosen, {"rows": chosen.rows, "tokens": chosen.tokens, "chunk_tokens": CHUNK})
    for name in seconds:
        figures: dict[str, object] = {
            "seconds": spread(seconds[name]),
            "time_over_all_logits_at_once": spread(ratios(seconds[name], seconds["all logits at once"])),
        }
        if name in SIDES:
            chunk, checkpointing = SIDES[name]
            work = training_work(config, keys, chunked_mixture=chunk > 0, checkpointing=checkpointing)  # pyright: ignore
            figures["multiply_accumulates_over_all_logits_at_once"] = round(work.total.total / whole, 4)
        if name in BOUNDS:
            figures["bound"] = BOUNDS[name]
        report.line(name, **figures)
    report.close()


if __name__ == "__main__":
    main()

"""`adaponder compare`: two trained networks side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.checkpoint_commands import RunsOption
from pipeline.command_line import reported
from pipeline.generate_command import (
    GreedyOption,
    HtmlOption,
    SeedOption,
    TemperatureOption,
    TokensOption,
    TopKOption,
)
from pipeline.prompts import PromptFileOption, PromptOption, prompts_of

_WHICH = "RUN/checkpoints/step-00001000, a release's folder, or a run's name or folder (its newest checkpoint)."


@reported
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_WHICH)],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; differences are B's less A's.")],
    runs: RunsOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Validation rows a source; the first ones.")] = 64,
    batch_rows: Annotated[int, typer.Option("--batch-rows", min=1, help="Rows at a time.")] = 8,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Of the bootstrap over documents.")] = 1000,
    shards: Annotated[
        Path | None, typer.Option("--shards", help="Folder of shards, for releases that lie outside their runs.")
    ] = None,
    prompts: PromptOption = None,
    prompt_files: PromptFileOption = None,
    tokens: TokensOption = 64,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 50,
    greedy: GreedyOption = False,
    html: HtmlOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object as JSON.")] = False,
) -> None:
    """Loss and depth on the same validation rows, with 95 % intervals; texts.

    Both must have been trained on the same shards, and so with the same
    tokenizer. Texts are written where prompts are given.
    """
    given = prompts_of(prompts, prompt_files) if prompts or prompt_files else []
    from pipeline.evaluation.comparison import Judged, compare_and_tell
    from pipeline.evaluation.generation import Asked
    from pipeline.evaluation.sample import Sampling

    asked = Asked(given, tokens, seed, Sampling(temperature, top_k, greedy))
    compare_and_tell((a, b), runs, asked, Judged(rows, batch_rows, draws, seed, shards), html, as_json)

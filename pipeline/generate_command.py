"""`adaponder generate`: text of a trained network, tinted by where it thought longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.checkpoint_commands import RunsOption
from pipeline.command_line import reported
from pipeline.prompts import PromptFileOption, PromptOption, prompts_of

TokensOption = Annotated[int, typer.Option("--tokens", min=0, help="At most so many new tokens.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same text.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=1e-3, help="Below 1 the likely is likelier.")]
TopKOption = Annotated[int, typer.Option("--top-k", min=0, help="Sample among so many of the likeliest; 0: all.")]
GreedyOption = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one page that needs no other.")]


@reported
def generate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="RUN/checkpoints/step-00001000, a release's folder, or a run's name or folder."
        ),
    ],
    runs: RunsOption = None,
    name: Annotated[str, typer.Option("--checkpoint", help="Of a run: step-00001000, or latest.")] = "latest",
    prompts: PromptOption = None,
    prompt_files: PromptFileOption = None,
    tokens: TokensOption = 64,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 50,
    greedy: GreedyOption = False,
    html: HtmlOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects as JSON.")] = False,
) -> None:
    """Continue prompts; every token is tinted by the passes it took.

    The prompt is standard input where none is given. In fp32, halted tokens skipped, on a GPU where there is one.
    """
    given = prompts_of(prompts, prompt_files)
    from pipeline.evaluation.generation import Asked, generate_and_tell
    from pipeline.evaluation.sample import Sampling

    asked = Asked(given, tokens, seed, Sampling(temperature, top_k, greedy))
    generate_and_tell(checkpoint, runs, name, asked, html, as_json)

"""`adaponder run`: every stage of a recipe on this machine, and at the end what came of it."""

from __future__ import annotations

import shlex

from rich.table import Table
from transformers import AutoTokenizer

from pipeline.checkpoint import complete_checkpoints, load_model
from pipeline.command_line import cores
from pipeline.console import console
from pipeline.data.vocabulary import check_entries
from pipeline.evaluation.check import check_evaluation
from pipeline.evaluation.sample import generate_sample, render
from pipeline.evaluation.stage import evaluate
from pipeline.recipe import Recipe
from pipeline.release.stage import release
from pipeline.reporting.stage import evaluated_baselines, report_run
from pipeline.run_folder import RunFolder
from pipeline.tracking.server import tracking_uri, without_secrets
from pipeline.training.checks import check_recipe, choose_ranks
from pipeline.training.stage import train
from pipeline.training.stopping import Stopped
from pipeline.watching.start import check_watch
from pipeline.watching.with_training import train_watched
from tokenization.encoding.tokenizer import load_tokenizer
from tokenization.stage import tokenize


def whole_run(recipe: Recipe, folder: RunFolder, resume: str, command: str, watched: bool = False) -> None:
    """Tokenize, train, evaluate the first and the last checkpoint, release the last, report; then the summary.

    watched: every checkpoint is judged beside the training, too. What a watcher had to give up keeps nothing from being
    released, and is raised at the end.
    """
    # Before anything is made: what is wrong for training, or for the report, would only show after tokenization.
    evaluated_baselines(recipe, folder)
    _, config = check_recipe(recipe, choose_ranks(recipe)[0])
    check_evaluation(recipe, folder)
    if watched:
        check_watch(recipe, folder)
    if isinstance(recipe.tokenize.tokenizer, str):
        tokenizer, _ = load_tokenizer(recipe.tokenize.tokenizer, recipe.tokenize.end_of_document)
        entries = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        check_entries(recipe.tokenize.tokenizer, entries, config.vocab_size)
    tokenize(recipe, folder, command, cores())
    unjudged = None
    if watched:
        _, unjudged = train_watched(recipe, folder, resume)
        if isinstance(unjudged, Stopped):
            raise unjudged
    else:
        train(recipe, folder, resume)
    checkpoints = complete_checkpoints(folder.checkpoints)
    first, last = checkpoints[0], checkpoints[-1]
    before = evaluate(recipe, folder, first.name)
    after = evaluate(recipe, folder, last.name)
    released = release(recipe, folder, last.name, command=command)
    page = report_run(recipe, folder)

    table = Table(title=f"{recipe.name}: validation", title_justify="left")
    for column in ("", first.name, last.name):
        table.add_column(column, justify="left" if not column else "right")
    rows = (
        ("loss, nats a token", "loss", ".4f"),
        ("perplexity", "perplexity", ".2f"),
        ("bits a byte", "bits_per_byte", ".4f"),
        (f"mean depth of {config.max_passes}", "mean_depth", ".3f"),
    )
    for label, name, form in rows:
        table.add_row(label, *(format(getattr(metrics.overall, name), form) for metrics in (before, after)))
    console.print()
    console.print(table)
    section = recipe.evaluate
    tokenizer = AutoTokenizer.from_pretrained(folder.shards / "tokenizer")
    sample = generate_sample(load_model(last), tokenizer, section.sample_prompt, section.sample_tokens, recipe.seed)
    console.print()
    console.print(render(sample))
    console.print()
    console.print(f"checkpoints  {folder.checkpoints}")
    console.print(f"evaluation   {folder.evaluated}")
    console.print(f"report       {page}")
    console.print(f"release      {released}")
    store = shlex.quote(without_secrets(tracking_uri(folder.root)))
    console.print(f"curves       mlflow ui --backend-store-uri {store}")
    if unjudged is not None:
        raise unjudged

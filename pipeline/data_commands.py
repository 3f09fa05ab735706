"""`adaponder data`: is a folder of shards sound, what is in it, and what does a row say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command_line import reported

app = typer.Typer(no_args_is_help=True, help="Check shards, and look into them.")

ShardsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder of shards: the one that holds manifest.json.")
]


@app.command()
@reported
def verify(
    shards: ShardsArgument,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Shards read at once; else one a core.")
    ] = None,
) -> None:
    """Read all shards and compare everything with the manifest.

    Checked are the hashes of shards, indices and tokenizer; every index entry
    against the tar; every chunk's header, tokens (below the vocabulary) and
    documents (without gaps, each with its end); rows, tokens, documents and
    bytes of text by source; padding; sample keys; and that no other shards lie
    about.

    Each problem is one line that names the file and the place. Exit code 0:
    nothing found; 1: something is damaged; 2: DIR is no folder of shards.
    """
    from tokenization.inspection.verify import verify_and_tell

    verify_and_tell(shards, workers)


@app.command()
@reported
def show(
    shards: ShardsArgument,
    png: Annotated[
        Path | None, typer.Option("--png", help="Where the picture goes; else DIR/document-lengths.png.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON; a picture is made only with --png.")
    ] = False,
) -> None:
    """Tables of what the shards hold, and how long their documents are.

    By split and source: documents, tokens, share of the tokens, bytes of text,
    tokens a document, bytes a token. Refused records by reason. Shards, bytes
    on disk, and what they take beyond the raw tokens. The lengths of documents
    in tokens, end-of-document mark included, by source: as text and as a
    picture.
    """
    from tokenization.inspection.show import show_and_tell

    show_and_tell(shards, png, as_json)


@app.command()
@reported
def peek(
    shards: ShardsArgument,
    row: Annotated[int, typer.Option("--row", help="Number of the row in its split, from 0.")],
    split: Annotated[str, typer.Option("--split", help="train or validation-SOURCE.")] = "train",
    tokens: Annotated[bool, typer.Option("--tokens", help="Each token by itself, with its place and id.")] = False,
) -> None:
    """Decoded text of one row, with the boundaries of its documents.

    A line above each document tells its source, its place in the row, and
    whether it goes on from before or in another row. End-of-document marks and
    padding are shown. Control characters appear as pictures (␛), so that no
    text moves the cursor.
    """
    from tokenization.inspection.peek import peek as stage

    stage(shards, row, split, tokens)

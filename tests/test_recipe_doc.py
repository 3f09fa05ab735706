from __future__ import annotations

from pathlib import Path

from pipeline.recipe_doc import recipe_markdown

DOC = Path(__file__).parents[1] / "docs" / "recipe.md"


def test_the_document_is_what_the_types_say():
    assert DOC.read_text() == recipe_markdown(), "run `make docs`"

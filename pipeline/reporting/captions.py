"""What each suite's chapter is called, and in one sentence what each of its figures shows.

A suite or a figure that is not named here is told by its own name: nothing that was found is left out.
"""

from __future__ import annotations

TITLES = {
    "validation": "Language modelling",
    "depth": "Where the passes are spent",
    "policies": "Policies at equal compute",
    "tasks": "Tasks",
    "speed": "Speed",
}
TOLD = {
    "validation": "Loss on text that the training never saw, in fp32 with the training's own weights. Nats a token are "
    "natural logarithms; bits a byte do not depend on the tokenizer; depth is how many passes a token takes part in.",
    "depth": "A token that halts takes part in no further pass. The tables say which tokens are given more of them, "
    "and whether those are the ones that are hard to predict from.",
    "policies": "The network's own choice of which tokens go on, against fixed rules that spend exactly as much. "
    "Intervals are 95 % of the losses of documents drawn again.",
    "tasks": "Questions with known answers, by lm-evaluation-harness; beside each the passes that its tokens took.",
    "speed": "Wall-clock time and memory with halting on and off, on the machine named below.",
}
FIGURES = {
    ("validation", "depth.png"): (
        "How deep the tokens go",
        "Share of the tokens that stop at each depth, and that have halted by the end of each pass.",
    ),
    ("validation", "loss_by_depth.png"): (
        "Loss by depth",
        "Mean loss of the tokens of each depth over the share of tokens that have it: deep tokens should be hard ones.",
    ),
    ("validation", "loss_by_source.png"): (
        "Loss by source",
        "Mean loss of each source of text, the hardest at the top, all of them together in green.",
    ),
    ("validation", "halting.png"): ("Halting", "Share of the tokens that have halted by the end of each pass."),
    ("depth", "depth_by_source.png"): (
        "Depth by source",
        "Shares of each depth among the tokens of each source, with their mean depth and loss.",
    ),
    ("depth", "depth_by_position.png"): (
        "Depth by position",
        "Mean depth (left axis, 95 % of it) and loss (right axis) by where in the row the token stands.",
    ),
    ("depth", "depth_by_frequency.png"): (
        "Depth by frequency",
        "Shares of each depth among frequent and rare tokens, ranked by how often they occur in what was evaluated.",
    ),
    ("depth", "depth_by_kind.png"): (
        "Depth by kind of token",
        "Shares of each depth among words, parts of words, digits, punctuation and the like.",
    ),
    ("depth", "gates.png"): (
        "Gate values",
        "How the gates' values are spread over the tokens still active after each pass; below the threshold a token "
        "halts.",
    ),
    ("policies", "policies.png"): (
        "Loss against compute",
        "Loss of each policy over the passes a token that it spends: the lower line chooses its tokens better.",
    ),
    ("tasks", "accuracy.png"): (
        "Right answers by task",
        "Share of right answers to each task with standard errors, and the mean depth of the tokens it was asked with.",
    ),
}
FILES = {
    "metrics.json": "every number of this suite",
    "depth.html": "the most and the least pondered tokens in their context",
    "policies.csv": "every point of every policy, for a spreadsheet",
}
HEADLINES = [
    ("validation", "loss", "Validation loss", "nats a token", ".4f"),
    ("validation", "perplexity", "Perplexity", "a token", ",.2f"),
    ("validation", "bits_per_byte", "Bits a byte", "of text", ".4f"),
    ("validation", "mean_depth", "Mean depth", "passes a token", ".3f"),
    ("depth", "share_of_full_depth", "Compute spent", "of that at full depth", ".1%"),
    ("tasks", "average/0shot/acc", "Right answers", "mean of the tasks, 0-shot", ".1%"),
    ("tasks", "average/5shot/acc", "Right answers", "mean of the tasks, 5-shot", ".1%"),
]
"""The few numbers told first: suite, name, label, unit, format."""


def chapter_title(suite: str) -> str:
    return TITLES.get(suite, _spelled(suite))


def figure_told(suite: str, name: str) -> tuple[str, str]:
    """Title and what it shows."""
    title = _spelled(name.rpartition(".")[0])
    return FIGURES.get((suite, name), (title, f"{title}, as the suite {suite} found it."))


def _spelled(name: str) -> str:
    words = name.replace("_", " ").replace("-", " ").strip()
    return words[:1].upper() + words[1:]

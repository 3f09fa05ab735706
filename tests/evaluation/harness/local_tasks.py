"""A folder of small tasks over local data, as one has it on a cluster without network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

from tests.conftest import WORDS

LAMBADA, CHOICES, WRITING, ROLLING = "words_lambada", "words_choices", "words_writing", "words_perplexity"
EXAMPLES = {LAMBADA: 23, CHOICES: 13, WRITING: 9, ROLLING: 5}


def make_tasks(folder: Path, new_tokens: int = 8) -> Path:
    """Write the four tasks, one of each kind that the harness asks for, and their data beside them."""
    folder.mkdir(parents=True)
    chance = random.Random(3)

    def words(least: int, most: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randrange(least, most)))

    # Some texts are longer than a tiny network's positions, so that beginnings are cut off; one has no context.
    lambada = (
        [{"text": words(2, 12)} for _ in range(19)] + [{"text": words(60, 90)} for _ in range(3)] + [{"text": "gate"}]
    )
    choices = [
        {"question": words(3, 9), "choices": [words(1, 4) for _ in range(3)], "label": chance.randrange(3)}
        for _ in range(EXAMPLES[CHOICES])
    ]
    writing = [{"question": words(2, 7), "answer": chance.choice(WORDS)} for _ in range(EXAMPLES[WRITING])]
    rolling = [{"text": words(1, 120)} for _ in range(EXAMPLES[ROLLING])]
    _task(
        folder,
        LAMBADA,
        lambada,
        output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
        doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[_metric("perplexity", "perplexity", False), _metric("acc")],
    )
    _task(
        folder,
        CHOICES,
        choices,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="label",
        metric_list=[_metric("acc"), _metric("acc_norm")],
    )
    _task(
        folder,
        WRITING,
        writing,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": [" gate"], "max_gen_toks": new_tokens, "do_sample": False},
        metric_list=[_metric("exact_match")],
    )
    _task(
        folder,
        ROLLING,
        rolling,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[_metric("word_perplexity", "weighted_perplexity", False)],
        num_fewshot=0,
    )
    return folder


def _metric(name: str, aggregation: str = "mean", higher_is_better: bool = True) -> dict:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def _task(folder: Path, name: str, documents: list[dict], **fields: object) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder.parent / "cache")},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **fields,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

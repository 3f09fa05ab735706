"""The harness's model: text to tokens as its own `HFLM` does it, batches to the ranks, answers back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.harness.answering import Answers
from pipeline.evaluation.harness.depths import TaskDepth
from pipeline.evaluation.harness.jobs import Row, RowScore, ScoreBatch, WriteBatch, Written

MODEL_NAME = "adaponder"
"""What the harness knows the model by."""
MOST_NEW_TOKENS = 256
"""Where a task does not say how much may be written; HFLM's own."""


@cache
def language_model_class() -> type:
    """The class, registered with the harness as `adaponder`; made here, so that lm_eval is imported when it is used."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    @register_model(MODEL_NAME)
    class AdaPonderLM(TemplateLM):
        """Answers the harness's requests; the harness itself makes pairs of context and continuation (TemplateLM)."""

        def __init__(
            self,
            answers: Answers,
            tokenizer: Any,
            batch_rows: int,
            max_length: int,
            facts: dict[str, Any] | None = None,
            post_texts: Callable[[int, int], None] = lambda done, total: None,
        ) -> None:
            """max_length: how many tokens a text may have; facts: what the results say of the model; post_texts is told
            how many texts of how many a batch has answered."""
            super().__init__()
            self.tokenizer = tokenizer
            self.max_length = max_length
            self.depths: dict[str, TaskDepth] = {}
            """Of each task, since this was last emptied."""
            self._answers = answers
            self._batch_rows = batch_rows
            self._facts = facts or {}
            self._post_texts = post_texts

        @property
        def eot_token_id(self) -> int:
            return self.tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            """What stands before a text without context."""
            start = self.tokenizer.bos_token_id
            return self.eot_token_id if start is None else start

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path)

        def get_model_info(self) -> dict[str, Any]:
            """Goes into the results."""
            return self._facts

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            """With the special tokens that the tokenizer adds by itself, but none before a text that starts with it."""
            if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
                add_special_tokens = False
            special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return self.tokenizer.encode(string, **special)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            pairs = [self._pair(*request.args) for request in requests]
            return self._score(pairs, [request.task_name for request in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            pairs, names, owners = [], [], []
            for number, request in enumerate(requests):
                windows = get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
                )
                for window in windows:
                    pairs.append(make_disjoint_window(window))
                    names.append(request.task_name)
                    owners.append(number)
            totals = [0.0] * len(requests)
            for number, (found, _) in zip(owners, self._score(pairs, names), strict=True):
                totals[number] += found
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            groups: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                groups.setdefault(repr(request.args[1]), []).append(number)
            batches, owners, stops = [], [], []
            for numbers in groups.values():
                first = requests[numbers[0]]
                limit, until, arguments = self._way(first.task_name, first.args[1])
                contexts = {number: self._context(requests[number].args[0], limit) for number in numbers}
                numbers.sort(key=lambda number: (-len(contexts[number]), number))
                for some in _chunks(numbers, self._batch_rows):
                    texts = [contexts[number] for number in some]
                    batches.append(WriteBatch(texts, until, limit, arguments, seed=len(batches)))
                    owners.append(some)
                    stops.append(until)
            texts = [""] * len(requests)
            answers = self._answer(batches, [len(some) for some in owners])
            for batch, numbers, until, written in zip(batches, owners, stops, answers, strict=True):
                for number, context, text in zip(numbers, batch.contexts, written, strict=True):
                    self._note_written(requests[number].task_name, len(context), text)
                    decoded = self.tokenizer.decode(text.tokens, skip_special_tokens=True)
                    texts[number] = postprocess_generated_text(decoded, until, None)
            return texts

        def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
            return self._score([(context, target) for _, context, target in requests], [""] * len(requests))

        def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if context:
                return self._encode_pair(context, continuation)
            target = self.tok_encode(continuation, add_special_tokens=False)
            if target[:1] == [self.prefix_token_id]:  # the text brings its own start
                return target[:1], target[1:]
            return [self.prefix_token_id], target

        def _score(self, pairs: list[tuple[list[int], list[int]]], names: Sequence[str]) -> list[tuple[float, bool]]:
            rows: dict[tuple[int, ...], Row] = {}
            places: list[tuple[tuple[int, ...], int]] = []
            for (context, target), name in zip(pairs, names, strict=True):
                self._check_target(name, target)
                # The last token is predicted, not read; what is too long loses its beginning.
                read = tuple((context + target)[-self.max_length - 1 : -1])
                row = rows.setdefault(read, Row(list(read)))
                places.append((read, len(row.targets)))
                row.targets.append(target)
            # The longest first: rows of a batch are of similar length, and too little memory shows at once.
            ordered = sorted(rows, key=lambda read: (-len(read), read))
            chunks = list(_chunks(ordered, self._batch_rows))
            batches = [ScoreBatch([rows[read] for read in some]) for some in chunks]
            found: dict[tuple[int, ...], RowScore] = {}
            for some, answers in zip(chunks, self._answer(batches, [len(some) for some in chunks]), strict=True):
                found.update(zip(some, answers, strict=True))
            for (read, place), name in zip(places, names, strict=True):
                score, target = found[read], rows[read].targets[place]
                self._depth(name).add(len(target), score.target_depths[place], len(read), score.read_depths)
            return [found[read].answers[place] for read, place in places]

        def _check_target(self, name: str, target: list[int]) -> None:
            if not target:
                raise UserError(f"task {name}: a continuation is empty in the tokenizer's tokens: nothing to score")
            if len(target) > self.max_length:
                raise UserError(
                    f"task {name}: a continuation of {len(target)} tokens is beyond the {self.max_length} "
                    "tokens that the network has positions for: leave the task out"
                )

        def _way(self, name: str, given: dict[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
            """Of a task's generation settings: how many new tokens, what ends a text, and arguments of generate()."""
            arguments: dict[str, Any] = dict(normalize_gen_kwargs(given, MOST_NEW_TOKENS))
            until = handle_stop_sequences(arguments.pop("until", None), eos=self.tokenizer.decode([self.eot_token_id]))
            limit = int(arguments.pop("max_gen_toks"))
            if limit >= self.max_length:
                raise UserError(
                    f"task {name} writes {limit} tokens, which leaves no room for a question in the "
                    f"{self.max_length} tokens that the network has positions for: set max_gen_toks in its "
                    "generation_kwargs, or leave the task out"
                )
            for refused in ("num_beams", "num_return_sequences"):
                if arguments.get(refused, 1) != 1:
                    raise UserError(f"task {name} asks for {refused}: one text is written at a time, leave it out")
            if not arguments.get("do_sample"):
                arguments.pop("temperature", None)
            return limit, until, arguments

        def _context(self, text: str, new_tokens: int) -> list[int]:
            tokens = self.tok_encode(text) or [self.prefix_token_id]
            return tokens[-(self.max_length - new_tokens) :]

        def _answer(self, batches: list[Any], sizes: list[int]) -> list[Any]:
            """sizes: how many texts each batch has."""
            found, texts = [], 0
            for answers, size in zip(self._answers(batches), sizes, strict=True):
                found.append(answers)
                texts += size
                self._post_texts(texts, sum(sizes))
            return found

        def _note_written(self, name: str, context_tokens: int, text: Written) -> None:
            new = len(text.tokens)
            self._depth(name).add(new, text.new_depths, context_tokens + new - 1, text.read_depths)

        def _depth(self, name: str) -> TaskDepth:
            return self.depths.setdefault(name, TaskDepth())

    return AdaPonderLM


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]

"""Our model's answers in the harness, against the harness's own model for transformers (HFLM) on the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.errors import UserError
from pipeline.evaluation.harness.answering import answer
from pipeline.evaluation.harness.catalogue import Catalogue
from pipeline.evaluation.harness.language_model import language_model_class
from pipeline.evaluation.harness.rounds import run_round
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from tests.evaluation.harness.local_tasks import CHOICES, EXAMPLES, LAMBADA, ROLLING, WRITING

pytest.importorskip("lm_eval")

ALL = [LAMBADA, CHOICES, WRITING, ROLLING]


@pytest.fixture(scope="module")
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run.shards / "tokenizer")


def ours(model: AdaPonderForCausalLM, tokenizer: Any, halting: str | None = None, batch_rows: int = 4) -> Any:
    def answers(batches: Any) -> Any:
        return (answer(model, tokenizer, batch, halting) for batch in batches)

    return language_model_class()(answers, tokenizer, batch_rows, model.config.max_position_embeddings)


def judged(model: Any, tasks: Any, names: list[str], shots: int = 0) -> tuple[dict, dict]:
    catalogue = Catalogue(names, str(tasks))
    return run_round(model, catalogue, catalogue.load(names, shots), 4, None)


def answers(samples: dict, name: str) -> list[tuple]:
    """(log likelihood, greedy) of every request, (text,) of every text written, in the documents' order."""
    return [
        response if isinstance(response, tuple) else (response,)
        for sample in sorted(samples[name], key=lambda sample: sample["doc_id"])
        for responses in sample["resps"]
        for response in responses
    ]


def farthest(some: list[tuple], others: list[tuple]) -> float:
    """The largest difference of log likelihoods; whatever else is in an answer must be the same."""
    assert [answer[1:] for answer in some] == [answer[1:] for answer in others]
    return max(abs(a[0] - b[0]) for a, b in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def stock():
    """A GPT-NeoX of transformers, random enough that greedy continuations differ, and the same as ours of one pass."""
    torch.manual_seed(5)
    sizes: Any = {
        "vocab_size": 304,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    neox: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for parameter in neox.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    network = AdaPonderForCausalLM(AdaPonderConfig(**sizes, max_passes=1)).eval()
    network.load_state_dict(neox.state_dict())
    return neox, network


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 5])
def test_answers_are_those_of_the_harness_own_model_on_stock_weights(stock, tokenizer, tasks, shots):
    pytest.importorskip("accelerate", reason="HFLM needs it, our own model does not")
    from lm_eval.models.huggingface import HFLM

    neox, network = stock
    names = ALL if shots == 0 else [LAMBADA, CHOICES, WRITING]
    harness_model: Any = HFLM  # pyright does not see the constructor behind its registration
    theirs = harness_model(pretrained=neox, tokenizer=copy.deepcopy(tokenizer), batch_size=3, max_length=64)
    expected_results, expected = judged(theirs, tasks, names, shots)
    results, found = judged(ours(network, tokenizer), tasks, names, shots)
    for name in names:
        if name == WRITING:
            assert answers(found, name) == answers(expected, name)
            assert len({text for (text,) in answers(found, name)}) > 3, "the network does not always say the same"
        elif name == ROLLING:
            pairs = zip(answers(found, name), answers(expected, name), strict=True)
            assert all(a == pytest.approx(b, rel=1e-6) for (a,), (b,) in pairs)  # theirs are summed in float32
        else:
            assert farthest(answers(found, name), answers(expected, name)) < 1e-4
        assert len(found[name]) == EXAMPLES[name]
        assert found[name][0]["arguments"] == expected[name][0]["arguments"]
        assert results["n-shot"][name] == shots
        for key, value in expected_results["results"][name].items():
            if isinstance(value, float):  # a perplexity follows the log likelihoods' differences
                assert results["results"][name][key] == pytest.approx(value, rel=1e-4)
            else:
                assert results["results"][name][key] == value
    assert set(results) == set(expected_results)


@pytest.mark.parametrize("batch_rows", [1, 5])
def test_skipping_changes_no_answer_and_no_depth(model, tokenizer, tasks, batch_rows):
    plain = ours(model, tokenizer, "masked")
    skipping = ours(model, tokenizer, None, batch_rows)
    _, expected = judged(plain, tasks, ALL)
    seen = set()
    with_hook: Any = model
    handle = with_hook.gpt_neox.embed_in.register_forward_pre_hook(lambda *_: seen.add(model.config.halting))
    _, found = judged(skipping, tasks, ALL)
    handle.remove()
    assert seen == {"skip"}
    assert model.config.halting == "masked", "the network is as it was"
    for name in (LAMBADA, CHOICES):
        assert farthest(answers(found, name), answers(expected, name)) < 1e-4
    assert answers(found, WRITING) == answers(expected, WRITING)
    assert skipping.depths == plain.depths


def test_a_round_is_the_one_that_the_harness_makes_of_names(model, tokenizer, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    _, samples = judged(ours(model, tokenizer), tasks, [CHOICES, WRITING], shots=3)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    alone: Any = simple_evaluate
    expected = alone(ours(model, tokenizer), tasks=[CHOICES, WRITING], num_fewshot=3, task_manager=manager)
    for name in (CHOICES, WRITING):
        assert [sample["arguments"] for sample in samples[name]] == [
            sample["arguments"] for sample in expected["samples"][name]
        ]
        assert answers(samples, name) == answers(expected["samples"], name)


def test_depths_are_those_of_one_forward_over_each_text(model, tokenizer, tasks):
    language_model = ours(model, tokenizer)
    _, samples = judged(language_model, tasks, [LAMBADA, WRITING])
    targets: list[int] = []
    read: list[int] = []
    for sample in samples[LAMBADA]:
        ((context, target),) = sample["arguments"]
        whole = tokenizer(context + target, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(context, add_special_tokens=False)["input_ids"])
        if not context:
            whole, start = [tokenizer.eos_token_id, *whole], 1
        new = len(whole) - start
        with torch.no_grad():
            depths = model(torch.tensor([whole[:-1][-64:]])).depths[0].tolist()
        targets += depths[-new:]
        read += depths
    found = language_model.depths[LAMBADA]
    assert len(set(targets)) > 1, "the test's gates halt some tokens"
    assert (found.target_tokens, found.target_depths) == (len(targets), sum(targets))
    assert (found.read_tokens, found.read_depths) == (len(read), sum(read))
    written = language_model.depths[WRITING]
    assert EXAMPLES[WRITING] <= written.target_tokens <= 8 * EXAMPLES[WRITING]
    assert 1 < written.of_targets < model.config.max_passes


def test_a_text_ends_by_itself_and_counts_no_token_after_its_end(model, tokenizer):
    from lm_eval.api.instance import Instance

    def written(contexts: list[str], until: list[str], **arguments: Any) -> tuple[list[str], Any]:
        language_model = ours(model, tokenizer)
        way = {"until": until, "max_gen_toks": 12, **arguments}
        requests = [
            Instance("generate_until", {}, (context, way), number, metadata=("some", number, 1))
            for number, context in enumerate(contexts)
        ]
        return language_model.generate_until(requests), language_model.depths["some"]

    contexts = ["token passes", "gate", "halt depth layer think easy"]
    whole, _ = written(contexts, [])
    assert len(set(whole)) == 3
    stop = whole[0][4:6]
    (cut, *_), depth = written(contexts[:1], [stop])
    assert cut == whole[0].split(stop)[0]
    ids = tokenizer(contexts[0])["input_ids"]
    network: Any = model
    with torch.no_grad():
        new = network.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0)
    new = new[0].tolist()[len(ids) :]
    length = next(n for n in range(1, len(new) + 1) if stop in tokenizer.decode(new[:n]))
    with torch.no_grad():
        depths = model(torch.tensor([ids + new[: length - 1]])).depths[0].tolist()
    assert (depth.target_tokens, depth.target_depths) == (length, sum(depths[len(ids) - 1 :]))
    assert (depth.read_tokens, depth.read_depths) == (len(depths), sum(depths))
    sampled = [written(contexts, [], do_sample=True, temperature=1.0)[0] for _ in range(2)]
    assert sampled[0] == sampled[1] != whole


def test_what_the_network_cannot_do_is_told_with_the_tasks_name(model, tokenizer):
    from lm_eval.api.instance import Instance

    def ask(kind: str, *arguments: Any) -> None:
        request = Instance(kind, {}, arguments, 0, metadata=("some", 0, 1))  # pyright: ignore
        getattr(ours(model, tokenizer), kind)([request])

    with pytest.raises(UserError, match="task some: a continuation of .* tokens is beyond the 64 tokens"):
        ask("loglikelihood", "gate", " token passes" * 60)
    with pytest.raises(UserError, match="task some: a continuation is empty"):
        ask("loglikelihood", "gate", "")
    with pytest.raises(UserError, match="task some writes 256 tokens, which leaves no room"):
        ask("generate_until", "gate", {"until": ["."]})
    with pytest.raises(UserError, match="task some asks for num_beams"):
        ask("generate_until", "gate", {"max_gen_toks": 4, "num_beams": 2})

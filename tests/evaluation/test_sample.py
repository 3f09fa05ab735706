"""Generated text, token by token with its depth."""

import copy
import io

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from pipeline.errors import UserError
from pipeline.evaluation.sample import depth_style, generate_sample, render


@pytest.fixture(scope="module")
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run.shards / "tokenizer")


def test_depths_are_those_of_one_forward_over_the_text(model, tokenizer):
    sample = generate_sample(model, tokenizer, "token passes gate", 20, seed=3)
    ids = [token for piece in sample.pieces for token in piece.tokens]
    prompt = tokenizer("token passes gate", add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert len(ids) == len(prompt) + 20
    assert sample.text.startswith("token passes gate")
    with torch.no_grad():
        depths = model(torch.tensor([ids])).depths[0].tolist()
    assert len(set(depths)) > 1, "the test's gates halt some tokens"
    left = iter(depths)
    expected = [max(next(left) for _ in piece.tokens) for piece in sample.pieces]
    assert [piece.depth for piece in sample.pieces] == expected


def test_the_text_is_the_plain_paths_without_a_cache(model, tokenizer):
    sample = generate_sample(model, tokenizer, "token passes gate", 20, seed=3)
    assert model.config.halting == "masked", "the network is as it was"
    inputs = tokenizer("token passes gate", add_special_tokens=False, return_tensors="pt")
    torch.manual_seed(3)
    plain = model.generate(
        **inputs,
        max_new_tokens=20,
        do_sample=True,
        top_k=50,
        use_cache=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    assert [token for piece in sample.pieces for token in piece.tokens] == plain[0].tolist()


def test_the_tokenizers_end_of_text_mark_ends_the_text(run, model):
    tokenizer = AutoTokenizer.from_pretrained(run.shards / "tokenizer")
    long = [token for piece in generate_sample(model, tokenizer, "gate", 12, seed=3).pieces for token in piece.tokens]
    given = len(tokenizer("gate", add_special_tokens=False)["input_ids"])
    # The network's own setting says another id: it came with the backbone, and knows nothing of the tokenizer.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(long[given + 2])
    assert tokenizer.eos_token_id != model.generation_config.eos_token_id
    short = [token for piece in generate_sample(model, tokenizer, "gate", 12, seed=3).pieces for token in piece.tokens]
    assert short == long[: long.index(tokenizer.eos_token_id, given) + 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_sample_leaves_every_gpus_generator_alone(model, tokenizer):
    torch.cuda.manual_seed_all(1)
    before = torch.cuda.get_rng_state_all()
    on_cpu = generate_sample(model, tokenizer, "gate", 12, seed=3)
    on_gpu = [generate_sample(copy.deepcopy(model).cuda(), tokenizer, "gate", 12, seed=3) for _ in range(2)]
    assert on_gpu[0] == on_gpu[1]
    assert on_cpu.text.startswith("gate")
    assert all(torch.equal(*states) for states in zip(before, torch.cuda.get_rng_state_all(), strict=True))


def test_the_same_seed_gives_the_same_text_and_leaves_torchs_own_alone(model, tokenizer):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = generate_sample(model, tokenizer, "gate", 12, seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert generate_sample(model, tokenizer, "gate", 12, seed=3) == first
    assert generate_sample(model, tokenizer, "gate", 12, seed=4) != first


@pytest.mark.parametrize("prompt", ["naïve 思考 🙂 end", "", "\n\ttabs"])
def test_pieces_give_the_text_back_whatever_its_bytes(model, tokenizer, prompt):
    sample = generate_sample(model, tokenizer, prompt, 0, seed=0)
    expected = prompt or tokenizer.eos_token
    assert sample.text == expected
    assert sample.prompt_pieces == len(sample.pieces)
    assert render(sample).plain.startswith(expected)


def test_a_text_beyond_the_positions_is_the_users_mistake(model, tokenizer):
    with pytest.raises(UserError, match="beyond the model's 64 positions"):
        generate_sample(model, tokenizer, "gate", 64, seed=0)


@pytest.mark.parametrize("passes", [1, 3, 4, 9])
def test_every_depth_has_its_own_colour_and_readable_letters(passes):
    styles = [depth_style(depth, passes) for depth in range(1, passes + 1)]
    assert len({str(style.bgcolor) for style in styles}) == passes

    def brightness(color):
        red, green, blue = color.triplet
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert all(abs(brightness(style.color) - brightness(style.bgcolor)) > 80 for style in styles)
    levels = [brightness(style.bgcolor) for style in styles]
    assert levels == sorted(levels, reverse=True)


def test_the_legend_tells_what_the_colours_mean(model, tokenizer):
    sample = generate_sample(model, tokenizer, "gate", 4, seed=0)
    console = Console(width=200, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(render(sample))
    assert "depth  1   2   3  passes; mean" in console.export_text()

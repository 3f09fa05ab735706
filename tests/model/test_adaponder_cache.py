"""The cache against plain lists: what each pass reads of every row, whatever was added, dropped and reordered."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.adaponder_cache import AdaPonderCache
from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

LAYERS, HEADS, SIZE = 2, 2, 3


class ListedCache:
    """The same as lists: of each row its tokens, each a number of its own and a depth."""

    def __init__(self, max_passes: int) -> None:
        self.max_passes = max_passes
        self.rows: list[list[tuple[int, int]]] = []

    def must_read(self, pass_index: int) -> list[Counter]:
        """Of each row the entries, told by (token, pass that made it): those of the pass, or of the last before it."""
        return [Counter((token, min(pass_index, depth - 1)) for token, depth in row if depth > 0) for row in self.rows]


def entry(token: int, pass_index: int) -> torch.Tensor:
    """[L, 2, H, D], different in every place and for every token and pass."""
    places = torch.arange(LAYERS * 2 * HEADS * SIZE, dtype=torch.float64).view(LAYERS, 2, HEADS, SIZE)
    return places + 1000 * pass_index + 10_000 * token


def add(cache: AdaPonderCache, listed: ListedCache, depths: torch.Tensor, first_token: int) -> None:
    """Add tokens of these depths, int64 [B, n], 0 on padding, as a run of the passes would."""
    flat = depths.flatten()
    passes = []
    for i in range(listed.max_passes):
        index = (flat > i).nonzero().squeeze(1)
        if not len(index):
            break
        entries = torch.stack([entry(first_token + place, i) for place in index.tolist()], dim=2)
        passes.append((None if len(index) == len(flat) else index, entries))
    cache.add(passes, depths)
    if not listed.rows:
        listed.rows = [[] for _ in depths]
    for place, depth in enumerate(flat.tolist()):
        listed.rows[place // depths.shape[1]].append((first_token + place, depth))


def read(cache: AdaPonderCache, pass_index: int, num_rows: int) -> list[Counter]:
    """The same as `must_read`, from the tensors; keys and values of all layers and heads must tell the same."""
    found = [Counter() for _ in range(num_rows)]
    for segment in cache.read_by(pass_index):
        used = segment.in_use()
        for layer in range(LAYERS):
            keys, values = segment.key_value(layer)
            assert keys.shape == values.shape == (num_rows, HEADS, segment.length, SIZE)
            for row, place in used.nonzero().tolist():
                number = int(keys[row, 0, place, 0]) // 1000
                token, maker = divmod(number, 10)
                expected = entry(token, maker)[layer]
                assert torch.equal(keys[row, :, place], expected[0])
                assert torch.equal(values[row, :, place], expected[1])
                if layer == 0:
                    found[row][token, maker] += 1
    return found


@st.composite
def histories(draw) -> tuple[int, list[tuple]]:
    """A number of passes, and operations; rows and places are drawn as fractions of what there is by then."""
    max_passes = draw(st.integers(1, 4))
    seeds, counts = st.integers(0, 2**31), st.integers(1, 6)
    operation = st.one_of(
        st.tuples(st.just("add"), counts, seeds),
        st.tuples(st.just("add"), counts, seeds),
        st.tuples(st.just("crop"), st.integers(0, 8)),
        st.tuples(st.just("reorder"), seeds),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
        st.tuples(st.just("select"), seeds),
        st.tuples(st.just("reset")),
    )
    first = ("add", draw(counts), draw(seeds))
    return max_passes, [("rows", draw(st.integers(1, 3))), first, *draw(st.lists(operation, max_size=9))]


@settings(max_examples=60, deadline=None)
@given(history=histories())
def test_every_pass_reads_what_it_must(history: tuple[int, list[tuple]]) -> None:
    torch.set_num_threads(1)
    max_passes, operations = history
    cache, listed = AdaPonderCache(max_passes), ListedCache(max_passes)
    num_rows, next_token = 1, 0
    for name, *arguments in operations:
        generator = torch.Generator().manual_seed(arguments[-1] if arguments else 0)
        if name == "rows":
            num_rows = arguments[0]
        elif name == "add":
            depths = torch.randint(0, max_passes + 1, (num_rows, arguments[0]), generator=generator)
            add(cache, listed, depths, next_token)
            next_token += depths.numel()
        elif name == "crop":
            cache.crop(-arguments[0])
            listed.rows = [row[: len(row) - arguments[0]] if arguments[0] < len(row) else [] for row in listed.rows]
        elif name == "reset":
            cache.reset()
            listed.rows = []
            assert not cache.is_initialized
        elif cache.is_initialized and num_rows < 9:
            if name == "repeat":
                rows = [row for row in range(num_rows) for _ in range(arguments[0])]
                cache.batch_repeat_interleave(arguments[0])
            elif name == "reorder":
                rows = torch.randint(0, num_rows, (num_rows,), generator=generator).tolist()
                cache.reorder_cache(torch.tensor(rows))
            else:
                kept = torch.rand(num_rows, generator=generator) < 0.7
                kept[0] = True
                rows = kept.nonzero().flatten().tolist()
                cache.batch_select_indices(kept if arguments[0] % 2 else torch.tensor(rows))
            listed.rows = [list(listed.rows[row]) for row in rows]
            num_rows = len(rows)
        if cache.is_initialized:
            assert cache.batch_size == num_rows
            assert cache.get_seq_length() == len(listed.rows[0])
            assert cache.depths is not None
            assert cache.depths.tolist() == [[depth for _, depth in row] for row in listed.rows]
            for i in range(max_passes):
                assert read(cache, i, num_rows) == listed.must_read(i)


def bytes_share(cache: AdaPonderCache, depths: torch.Tensor, max_passes: int) -> float:
    """Bytes over those of K full caches of as many tokens, in float32."""
    return cache.nbytes / (max_passes * depths.numel() * LAYERS * 2 * HEADS * SIZE * 4)


def fill(cache: AdaPonderCache, depths: torch.Tensor) -> None:
    flat = depths.flatten()
    passes = []
    for i in range(int(depths.max())):
        index = (flat > i).nonzero().squeeze(1)
        passes.append((index, torch.zeros(LAYERS, 2, len(index), HEADS, SIZE)))
    cache.add(passes, depths)


@pytest.mark.parametrize("weights", [[8, 2, 1, 1], [1, 1, 1, 1], [1, 0, 0, 9], [0, 0, 0, 1], [1, 0, 0, 0]])
@pytest.mark.parametrize("tokens", [512, pytest.param(2048, marks=pytest.mark.slow)])
def test_it_holds_an_entry_a_pass_that_a_token_took(weights: list[int], tokens: int) -> None:
    """Read in one go, then token by token to twice as many: never above (mean depth / K + 5 %) of K full caches."""
    generator = torch.Generator().manual_seed(tokens)
    depths = torch.multinomial(torch.tensor(weights).float(), 2 * tokens, True, generator=generator)[None] + 1
    cache = AdaPonderCache(4)
    fill(cache, depths[:, :tokens])
    assert bytes_share(cache, depths[:, :tokens], 4) == depths[:, :tokens].float().mean() / 4, "no spare room"
    for place in range(tokens, 2 * tokens):
        fill(cache, depths[:, place : place + 1])
        seen = depths[:, : place + 1]
        assert bytes_share(cache, seen, 4) <= seen.float().mean() / 4 + 0.05


def test_token_by_token_from_nothing_it_stays_within_bounds_too() -> None:
    depths = torch.randint(1, 5, (1, 512), generator=torch.Generator().manual_seed(9))
    cache = AdaPonderCache(4)
    for place in range(512):
        fill(cache, depths[:, place : place + 1])
    assert bytes_share(cache, depths, 4) <= depths.float().mean() / 4 + 0.05


def test_of_a_batch_the_moving_parts_are_as_long_as_their_longest_row() -> None:
    """Rows of one kind of text differ little in how many tokens of each depth they have; 8 of 2,048 cost 5 %."""
    generator = torch.Generator().manual_seed(4)
    depths = torch.multinomial(torch.tensor([4.0, 3.0, 2.0, 1.0]), 8 * 2048, True, generator=generator).view(8, -1) + 1
    cache = AdaPonderCache(4)
    fill(cache, depths)
    assert bytes_share(cache, depths, 4) <= depths.float().mean() / 4 + 0.05


@pytest.mark.parametrize("weights", [[8, 2, 1, 1], [1, 1, 1, 1], [4, 3, 2, 1]])
def test_a_batch_stays_within_bounds_while_it_is_written(weights: list[int]) -> None:
    generator = torch.Generator().manual_seed(5)
    depths = torch.multinomial(torch.tensor(weights).float(), 8 * 544, True, generator=generator).view(8, -1) + 1
    cache = AdaPonderCache(4)
    fill(cache, depths[:, :512])
    for place in range(512, 544):
        fill(cache, depths[:, place : place + 1])
        seen = depths[:, : place + 1]
        assert bytes_share(cache, seen, 4) <= seen.float().mean() / 4 + 0.05


def test_rows_that_differ_never_take_more_than_full_caches() -> None:
    """What is settled takes one entry a token, whatever its depth; what is moving as many as the deepest row has."""
    depths = torch.tensor([[1], [2], [3], [4]]).expand(4, 60)
    cache = AdaPonderCache(4)
    fill(cache, depths)
    assert bytes_share(cache, depths, 4) == 1
    cache = AdaPonderCache(4)
    fill(cache, depths[:3])
    assert bytes_share(cache, depths[:3], 4) == 0.75


def test_padding_takes_no_room() -> None:
    depths = torch.tensor([[0, 0, 0, 2, 1]])
    cache = AdaPonderCache(3)
    fill(cache, depths)
    assert bytes_share(cache, depths, 3) == pytest.approx(3 / 15)


def test_what_the_network_keeps_is_what_was_active() -> None:
    """Through the network itself: its depths, and the bytes that they need."""
    model = random_model(halting_config(halting="skip"), seed=5, dtype=torch.float32)
    tokens = random_tokens(1, 30, seed=5)
    with torch.no_grad():
        output = model(tokens, use_cache=True)
    cache = output.past_key_values
    assert torch.equal(cache.depths.long(), output.depths)
    assert cache.nbytes == int(output.depths.sum()) * 2 * 2 * 16 * 4
    assert cache.nbytes < 4 * 30 * 2 * 2 * 16 * 4


def test_transformers_interface() -> None:
    cache = AdaPonderCache(3)
    assert (cache.get_seq_length(), cache.batch_size, cache.nbytes) == (0, -1, 0)
    assert not cache.is_initialized
    assert cache.is_croppable
    assert not cache.is_compileable
    cache.crop(-3)
    cache.reorder_cache(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.activate_past_recording()
    assert not cache.is_initialized, "nothing to do on an empty one"
    fill(cache, torch.tensor([[1, 3, 2, 0], [3, 1, 1, 1]]))
    assert (cache.get_seq_length(), cache.batch_size, cache.get_max_length()) == (4, 2, -1)
    assert cache.get_mask_sizes(5, 0) == (9, 0)
    cache.crop(0)
    assert cache.get_seq_length() == 4
    with pytest.raises(ValueError, match=r"crop\(2\): .* negative"):
        cache.crop(2)
    with pytest.raises(TypeError, match="takes whole tokens"):
        cache.update(torch.zeros(1), torch.zeros(1), 0)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)

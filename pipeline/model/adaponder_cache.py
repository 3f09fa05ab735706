"""The cache of decoding: every key and value once, however many passes read it (method section 2).

In pass i a token is read by the keys and values of pass i, or of its last active pass if it halted before. A token of
depth d so has d entries, not K. They are kept apart by what happened to the token after the pass that made them:

    settled, part i   entries of pass i of the tokens that halted there: every pass from i on reads them
    moving[i]         entries of pass i of the tokens that went on: pass i alone reads them

Pass i reads the parts 0, ..., i of `settled`, which lie one after the other, and moving[i]: two pieces, each of them
contiguous. Attention does not ask for an order of its keys, so nothing is copied together; and since tokens are added
in order, the newest ones are dropped by counting.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

GROWTH = 32
"""A part that is full grows by a 32nd of its length, and by 6 entries at least: that much is spare, and an entry is
copied about 32 times in a long text."""
LEAST_GROWTH = 6


class Segment:
    """Entries of some tokens of each row, over all layers, in parts. L layers, B rows, H heads, D head size.

    A row's parts lie one after the other, wherever those of another row begin: rows that differ in their parts but not
    in their sum take no room for it.
    """

    def __init__(self, num_parts: int) -> None:
        self.store: torch.Tensor | None = None
        """[L, 2, B, H, capacity, D]: keys and values."""
        self.counts: list[list[int]] = [[] for _ in range(num_parts)]
        """Of each part and row, how many entries are in use; no rows before the first entries."""
        self.starts: list[list[int]] = [[] for _ in range(num_parts)]
        """Where they begin."""
        self.limits: list[list[int]] = [[] for _ in range(num_parts)]
        """Where their room ends."""
        self.lengths = [0] * num_parts
        """Of the parts up to each, the largest row's end, gaps included."""
        self.shortest = [0] * num_parts
        """Of the parts up to each, the smallest row's entries."""

    def grow(self, added: list[list[int]], like: torch.Tensor) -> None:
        """Make room for so many more entries of each part and row, of the sizes of like [L, 2, any, H, D]."""
        if not self.counts[0]:
            self.counts, self.starts, self.limits = ([[0] * len(rows) for rows in added] for _ in range(3))
        before = self.counts
        self.counts = [_sums(*rows) for rows in zip(before, added, strict=True)]
        # A store of inference mode cannot be written to outside of it, as where generate() goes on with it.
        frozen = self.store is not None and self.store.is_inference() and not torch.is_inference_mode_enabled()
        parts = zip(self.starts, self.counts, self.limits, strict=True)
        full = any(s + c > end for rows in parts for s, c, end in zip(*rows, strict=True))
        if frozen or full:
            self._enlarge(before, like)
        self._measure()

    def _enlarge(self, before: list[list[int]], like: torch.Tensor) -> None:
        """Lay all parts out anew, with spare room; `before` of their entries exist."""
        starts, limits = [], []
        end = [0] * len(before[0])
        for counts in self.counts:
            longest = max(counts)
            spare = max(LEAST_GROWTH, longest // GROWTH) if self.store is not None and longest else 0
            starts.append(end)
            end = [place + count + spare for place, count in zip(end, counts, strict=True)]
            limits.append(end)
        limits[-1] = [max(end)] * len(end)
        layers, both, _, heads, size = like.shape
        grown = like.new_empty(layers, both, len(end), heads, max(end), size)
        for part, kept in enumerate(before):
            for row, count in enumerate(kept):
                new, old = starts[part][row], self.starts[part][row]
                if count:
                    assert self.store is not None
                    grown[:, :, row, :, new : new + count] = self.store[:, :, row, :, old : old + count]
                # What a row does not use is masked, but it must be numbers.
                grown[:, :, row, :, new + self.counts[part][row] : limits[part][row]] = 0
        self.store, self.starts, self.limits = grown, starts, limits

    def write(self, part: int, entries: torch.Tensor, rows: torch.Tensor, added: torch.Tensor) -> None:
        """Entries [L, 2, m, H, D] to the rows rows[i] (int64 [m], ascending), the last ones that `grow` made room for.

        added: int64 [B], how many each row is given.
        """
        assert self.store is not None
        ends = _sums(self.starts[part], self.counts[part])
        if len(ends) == 1:
            self.store[:, :, 0, :, ends[0] - len(rows) : ends[0]] = entries.transpose(2, 3)
            return
        # The i-th of all entries is the (i - those of earlier rows)-th of its row.
        first = torch.tensor(ends, device=rows.device) - added.cumsum(0)
        places = first[rows] + torch.arange(len(rows), device=rows.device)
        self.store[:, :, rows, :, places] = entries.permute(2, 0, 1, 3, 4)

    def _measure(self) -> None:
        length, totals = 0, [0] * len(self.counts[0])
        for part, (starts, counts) in enumerate(zip(self.starts, self.counts, strict=True)):
            length = max([length, *(s + c for s, c in zip(starts, counts, strict=True) if c)])
            totals = _sums(totals, counts)
            self.lengths[part], self.shortest[part] = length, min(totals, default=0)

    def keep(self, counts: list[list[int]]) -> None:
        """Keep only the first counts[p][b] entries of each part and row."""
        if self.counts[0]:
            self.counts = counts
            self._measure()

    def select(self, rows: torch.Tensor) -> None:
        """Row i becomes what row rows[i] is now; int64, of any length."""
        if self.counts[0]:
            chosen = rows.tolist()
            self.counts, self.starts, self.limits = (
                [[of_rows[row] for row in chosen] for of_rows in parts]
                for parts in (self.counts, self.starts, self.limits)
            )
            self._measure()
        if self.store is not None:
            self.store = self.store.index_select(2, rows)


def _sums(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


class Span:
    """The first parts of a segment: what one pass reads of it."""

    def __init__(self, segment: Segment, num_parts: int) -> None:
        self._segment, self._num_parts = segment, num_parts
        self.length = segment.lengths[num_parts - 1]
        """Entries of a row from the first to the last that is any row's, gaps included."""
        self.ragged = segment.shortest[num_parts - 1] != self.length
        """Whether some of them are not a token's."""

    def key_value(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [B, H, length, D]; those not in use are zeros or of dropped tokens."""
        assert self._segment.store is not None
        both = self._segment.store[layer, :, :, :, : self.length]
        return both[0], both[1]

    def in_use(self) -> torch.Tensor:
        """bool [B, length]: which entries are a token's."""
        assert self._segment.store is not None
        device = self._segment.store.device
        starts = torch.tensor(self._segment.starts[: self._num_parts], device=device).unsqueeze(-1)
        counts = torch.tensor(self._segment.counts[: self._num_parts], device=device).unsqueeze(-1)
        order = torch.arange(self.length, device=device)
        return ((order >= starts) & (order < starts + counts)).any(0)


class AdaPonderCache(Cache):
    """Keys and values of all tokens read so far, behind transformers' Cache interface, for the skipping path.

    Padding takes no entry. `depths`, int8 [B, tokens], tells how many passes each token took; 0 for padding. With pause
    tokens it is [B, tokens * positions_per_token]: a pause is held like a token, and lengths count tokens alone.
    """

    def __init__(self, max_passes: int, positions_per_token: int = 1) -> None:
        super().__init__(layers=[])
        self._positions_per_token = positions_per_token
        self.settled = Segment(max_passes)
        self.moving = [Segment(1) for _ in range(max_passes - 1)]
        self.depths: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """Not for this cache: whether a token goes on is known after its pass, so whole tokens are added."""
        raise TypeError("AdaPonderCache takes whole tokens, not a layer's keys: it serves halting 'skip' only")

    def add(self, passes: list[tuple[torch.Tensor | None, torch.Tensor]], depths: torch.Tensor) -> None:
        """Add n tokens a row, of depths int64 [B, n].

        passes: for each pass run the flat places (int64 [m], ascending, in B * n; None: all) of the tokens that took
        part and their entries [L, 2, m, H, D]; the list is emptied.
        """
        num_rows, n = depths.shape
        flat = depths.flatten()
        places = torch.arange(num_rows * n, device=depths.device)
        halting, going = self._settling(depths)
        halting_counts, going_counts = halting.tolist(), going.tolist()
        for i in range(len(passes)):
            index, entries = passes[i]
            passes[i] = (None, entries[:, :, :0])  # given back when it is stored: two copies of all passes are too many
            if i == 0:
                self.settled.grow(halting_counts, entries)
            rows = (places if index is None else index) // n
            halted = (flat if index is None else flat[index]) == i + 1
            count = int(halted.sum())
            if i < len(self.moving):
                self.moving[i].grow(going_counts[i : i + 1], entries)
            for segment, part, added, members, some in (
                (self.settled, i, halting[i], halted, count),
                (self.moving[i] if i < len(self.moving) else None, 0, going[i], ~halted, len(halted) - count),
            ):
                if segment is not None and some:
                    everyone = some == len(halted)
                    segment.write(
                        part,
                        entries if everyone else entries[:, :, members],
                        rows if everyone else rows[members],
                        added,
                    )
        added = depths.to(torch.int8)
        self.depths = added if self.depths is None else torch.cat([self.depths, added], dim=1)

    def _settling(self, depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of tokens of depths [B, n], int64 [K, B] each: how many halted after pass i, and how many went on."""
        passes = torch.arange(1, len(self.moving) + 2, device=depths.device)[:, None, None]
        return (depths == passes).sum(2), (depths > passes).sum(2)

    def read_by(self, pass_index: int) -> list[Span]:
        """What pass `pass_index` attends to, empty spans left out."""
        spans = [Span(self.settled, pass_index + 1)]
        spans += [Span(segment, 1) for segment in self.moving[pass_index : pass_index + 1]]
        return [span for span in spans if span.length]

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, spare room included."""
        return sum(s.store.nbytes for s in [self.settled, *self.moving] if s.store is not None)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens a row read so far, padding included."""
        return 0 if self.depths is None else self.depths.shape[1] // self._positions_per_token

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens: -2 removes two; what was rejected in assisted decoding."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): the number of tokens to remove is given as a negative number")
        if tokens_to_remove == 0 or self.depths is None:
            return
        self.depths = self.depths[:, : tokens_to_remove * self._positions_per_token]
        halted, went_on = (counts.tolist() for counts in self._settling(self.depths))
        self.settled.keep(halted)
        for i, segment in enumerate(self.moving):
            segment.keep(went_on[i : i + 1])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] is now (beam search)."""
        if self.depths is None:
            return
        rows = beam_idx.to(self.depths.device)
        self.depths = self.depths.index_select(0, rows)
        for segment in [self.settled, *self.moving]:
            segment.select(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.depths is not None:
            rows = torch.arange(self.depths.shape[0], device=self.depths.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.depths is not None:
            self.reorder_cache(torch.arange(self.depths.shape[0], device=self.depths.device)[indices])

    def reset(self) -> None:
        self.__init__(len(self.moving) + 1, self._positions_per_token)

    @property
    def batch_size(self) -> int:
        return -1 if self.depths is None else self.depths.shape[0]

    @property
    def is_initialized(self) -> bool:
        return self.depths is not None

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return False

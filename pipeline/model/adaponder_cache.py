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
"""A segment that is full grows by a 32nd of its length, and by 8 entries at least: that much is spare, and an entry is
copied about 32 times in a long text."""


class Segment:
    """Entries of some tokens of each row, over all layers, in parts. L layers, B rows, H heads, D head size."""

    def __init__(self, num_parts: int) -> None:
        self.store: torch.Tensor | None = None
        """[L, 2, B, H, capacity of all parts, D]: keys and values, a part behind the other."""
        self.counts: torch.Tensor | None = None
        """int64 [parts, B]: how many entries of each row are in use."""
        self.lengths = [0] * num_parts
        """Of each part the largest count."""
        self.shortest = [0] * num_parts
        """The smallest."""
        self.starts = [0] * (num_parts + 1)
        """Where each part begins, and where the last one's room ends."""

    def grow(self, added: torch.Tensor, like: torch.Tensor) -> None:
        """Make room for so many more entries, int64 [parts, B], of the sizes of like [L, 2, any, H, D]."""
        before = 0 if self.counts is None else self.counts
        self._set_counts(before + added)
        # A store of inference mode cannot be written to outside of it, as where generate() goes on with it.
        frozen = self.store is not None and self.store.is_inference() and not torch.is_inference_mode_enabled()
        capacities = [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)]
        if frozen or any(length > capacity for length, capacity in zip(self.lengths, capacities, strict=True)):
            self._enlarge(capacities, like, added.shape[1])

    def _enlarge(self, capacities: list[int], like: torch.Tensor, num_rows: int) -> None:
        starts = [0]
        for length, capacity in zip(self.lengths, capacities, strict=True):
            spare = max(8, length // GROWTH) if self.store is not None and length else 0
            starts.append(starts[-1] + max(capacity, length + spare))
        layers, both, _, heads, size = like.shape
        grown = like.new_empty(layers, both, num_rows, heads, starts[-1], size)
        for part, capacity in enumerate(capacities):
            new, end, old = starts[part], starts[part + 1], self.starts[part]
            if capacity:
                assert self.store is not None
                grown[..., new : new + capacity, :] = self.store[..., old : old + capacity, :]
            # What a shorter row does not use is masked, but it must be numbers.
            grown[..., new + max(capacity, self.shortest[part]) : end, :] = 0
        self.store, self.starts = grown, starts

    def write(self, part: int, entries: torch.Tensor, rows: torch.Tensor, added: torch.Tensor) -> None:
        """Entries [L, 2, m, H, D] to the rows rows[i] (int64 [m], ascending), the last ones that `grow` made room for.

        added: int64 [B], how many each row is given.
        """
        assert self.store is not None and self.counts is not None
        num_rows = len(added)
        if num_rows == 1:
            end = self.starts[part] + self.lengths[part]
            self.store[:, :, 0, :, end - len(rows) : end] = entries.transpose(2, 3)
            return
        # The i-th of all entries is the (i - those of earlier rows)-th of its row.
        first = self.starts[part] + self.counts[part] - added.cumsum(0)
        places = first[rows] + torch.arange(len(rows), device=rows.device)
        self.store[:, :, rows, :, places] = entries.permute(2, 0, 1, 3, 4)

    def _set_counts(self, counts: torch.Tensor) -> None:
        self.counts = counts
        numbers = counts.tolist()
        self.lengths = [max(row_counts, default=0) for row_counts in numbers]
        self.shortest = [min(row_counts, default=0) for row_counts in numbers]

    def keep(self, counts: torch.Tensor) -> None:
        """Keep only the first counts[p, b] entries of each part and row."""
        if self.counts is not None:
            self._set_counts(counts)

    def select(self, rows: torch.Tensor) -> None:
        """Row i becomes what row rows[i] is now; int64, of any length."""
        if self.counts is not None:
            self._set_counts(self.counts.index_select(1, rows))
        if self.store is not None:
            self.store = self.store.index_select(2, rows)


class Span:
    """The first parts of a segment: what one pass reads of it."""

    def __init__(self, segment: Segment, num_parts: int) -> None:
        self._segment = segment
        self._parts = [part for part in range(num_parts) if segment.lengths[part]]
        self.length = 0
        """Entries of a row from the first to the last that is any row's, gaps between the parts included."""
        if self._parts:
            self.length = segment.starts[self._parts[-1]] + segment.lengths[self._parts[-1]]

    @property
    def ragged(self) -> bool:
        """Whether some of the entries are not a token's."""
        return sum(self._segment.shortest[part] for part in self._parts) != self.length

    def key_value(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [B, H, length, D]; those not in use are zeros or of dropped tokens."""
        assert self._segment.store is not None
        both = self._segment.store[layer, :, :, :, : self.length]
        return both[0], both[1]

    def in_use(self) -> torch.Tensor:
        """bool [B, length]: which entries are a token's."""
        counts, starts = self._segment.counts, self._segment.starts
        assert counts is not None
        order = torch.arange(self.length, device=counts.device)
        used = torch.zeros(counts.shape[1], self.length, dtype=torch.bool, device=counts.device)
        for part in self._parts:
            inside = slice(starts[part], starts[part + 1])
            used[:, inside] = order[inside] < counts[part, :, None] + starts[part]
        return used


class AdaPonderCache(Cache):
    """Keys and values of all tokens read so far, behind transformers' Cache interface, for the skipping path.

    Padding takes no entry. `depths`, int8 [B, tokens], tells how many passes each token took; 0 for padding.
    """

    def __init__(self, max_passes: int) -> None:
        super().__init__(layers=[])
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
        for i in range(len(passes)):
            index, entries = passes[i]
            passes[i] = (None, entries[:, :, :0])  # given back when it is stored: two copies of all passes are too many
            if i == 0:
                self.settled.grow(halting, entries)
            rows = (places if index is None else index) // n
            halted = (flat if index is None else flat[index]) == i + 1
            count = int(halted.sum())
            if i < len(self.moving):
                self.moving[i].grow(going[i : i + 1], entries)
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
        return 0 if self.depths is None else self.depths.shape[1]

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
        self.depths = self.depths[:, :tokens_to_remove]
        halted, went_on = self._settling(self.depths)
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
        self.__init__(len(self.moving) + 1)

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

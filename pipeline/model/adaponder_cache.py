"""The cache of decoding: every key and value once, however many passes read it (method section 2).

In pass i a token is read by the keys and values of pass i, or of its last active pass if it halted before. A token of
depth d so has d entries, not K. They are kept apart by what happened to the token after the pass that made them:

    settled[i]   entries of pass i of the tokens that halted there: every pass from i on reads them
    moving[i]    entries of pass i of the tokens that went on: pass i alone reads them

Pass i reads settled[0], ..., settled[i] and moving[i]. Attention does not ask for an order of its keys, so nothing is
copied together; and since tokens are added in order, the newest ones are dropped by counting.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

GROWTH = 32
"""A segment that is full grows by a 32nd of its length, and by 8 entries at least: that much is spare, and an entry is
copied about 32 times in a long text."""


class Segment:
    """Entries of some tokens of each row, over all layers. L layers, B rows, H heads, D head size."""

    def __init__(self) -> None:
        self.store: torch.Tensor | None = None
        """[L, 2, B, H, capacity, D]: keys and values."""
        self.counts: torch.Tensor | None = None
        """int64 [B]: how many entries of each row are in use."""
        self.length = 0
        """The largest count."""
        self.shortest = 0
        """The smallest."""

    def add(self, entries: torch.Tensor, rows: torch.Tensor, num_rows: int) -> None:
        """Append entries [L, 2, m, H, D], the i-th to row rows[i] (int64 [m], ascending) of num_rows."""
        if self.counts is None:
            self.counts = torch.zeros(num_rows, dtype=torch.int64, device=rows.device)
        added = torch.bincount(rows, minlength=num_rows)
        first = added.cumsum(0) - added
        places = self.counts[rows] + torch.arange(len(rows), device=rows.device) - first[rows]
        self._set_counts(self.counts + added)
        store = self._reserve(entries, num_rows)
        if num_rows == 1:
            store[:, :, 0, :, self.length - len(rows) : self.length] = entries.transpose(2, 3)
        else:
            store[:, :, rows, :, places] = entries.permute(2, 0, 1, 3, 4)

    def _reserve(self, like: torch.Tensor, num_rows: int) -> torch.Tensor:
        layers, both, _, heads, size = like.shape
        capacity = 0 if self.store is None else self.store.shape[4]
        # A store of inference mode cannot be written to outside of it, as where generate() goes on with it.
        frozen = self.store is not None and self.store.is_inference() and not torch.is_inference_mode_enabled()
        if self.store is None or self.length > capacity or frozen:
            spare = 0 if self.store is None else max(8, self.length // GROWTH)
            grown = like.new_empty(layers, both, num_rows, heads, self.length + spare, size)
            if self.store is not None:
                grown[..., :capacity, :] = self.store
            # What a shorter row does not use is masked, but it must be numbers.
            grown[..., max(capacity, self.shortest) :, :] = 0
            self.store = grown
        return self.store

    def _set_counts(self, counts: torch.Tensor) -> None:
        self.counts = counts
        spread = counts.aminmax()
        self.length, self.shortest = int(spread.max), int(spread.min)

    @property
    def ragged(self) -> bool:
        """Whether the counts of the rows differ."""
        return self.shortest != self.length

    def key_value(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [B, H, length, D]; those past a row's count are zeros or of dropped tokens."""
        assert self.store is not None
        both = self.store[layer, :, :, :, : self.length]
        return both[0], both[1]

    def in_use(self) -> torch.Tensor:
        """bool [B, length]: which entries are a token's."""
        assert self.counts is not None
        return torch.arange(self.length, device=self.counts.device) < self.counts[:, None]

    def keep(self, counts: torch.Tensor) -> None:
        """Keep only the first counts[b] entries of each row."""
        if self.counts is not None:
            self._set_counts(counts)

    def select(self, rows: torch.Tensor) -> None:
        """Row i becomes what row rows[i] is now; int64, of any length."""
        if self.counts is not None and self.store is not None:
            self.store = self.store.index_select(2, rows)
            self._set_counts(self.counts.index_select(0, rows))


class AdaPonderCache(Cache):
    """Keys and values of all tokens read so far, behind transformers' Cache interface, for the skipping path.

    Padding takes no entry. `depths`, int8 [B, tokens], tells how many passes each token took; 0 for padding.
    """

    def __init__(self, max_passes: int) -> None:
        super().__init__(layers=[])
        self.settled = [Segment() for _ in range(max_passes)]
        self.moving = [Segment() for _ in range(max_passes - 1)]
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
        for i in range(len(passes)):
            index, entries = passes[i]
            passes[i] = (None, entries[:, :, :0])  # given back when it is stored: two copies of all passes are too many
            rows = (places if index is None else index) // n
            halted = (flat if index is None else flat[index]) == i + 1
            count = int(halted.sum())
            for segment, members, some in (
                (self.settled[i], halted, count > 0),
                (self.moving[i] if i < len(self.moving) else None, ~halted, count < len(halted)),
            ):
                if segment is not None and some:
                    everyone = count in (0, len(halted))
                    segment.add(
                        entries if everyone else entries[:, :, members], rows if everyone else rows[members], num_rows
                    )
        added = depths.to(torch.int8)
        self.depths = added if self.depths is None else torch.cat([self.depths, added], dim=1)

    def read_by(self, pass_index: int) -> list[Segment]:
        """The segments that pass `pass_index` attends to, empty ones left out."""
        segments = [*self.settled[: pass_index + 1], *self.moving[pass_index : pass_index + 1]]
        return [segment for segment in segments if segment.length]

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, spare room included."""
        return sum(s.store.nbytes for s in [*self.settled, *self.moving] if s.store is not None)

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
        for i, segment in enumerate(self.settled):
            segment.keep((self.depths == i + 1).sum(1))
        for i, segment in enumerate(self.moving):
            segment.keep((self.depths > i + 1).sum(1))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] is now (beam search)."""
        if self.depths is None:
            return
        rows = beam_idx.to(self.depths.device)
        self.depths = self.depths.index_select(0, rows)
        for segment in [*self.settled, *self.moving]:
            segment.select(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.depths is not None:
            rows = torch.arange(self.depths.shape[0], device=self.depths.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.depths is not None:
            self.reorder_cache(torch.arange(self.depths.shape[0], device=self.depths.device)[indices])

    def reset(self) -> None:
        self.__init__(len(self.settled))

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

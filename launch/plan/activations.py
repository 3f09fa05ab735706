"""What a micro-batch takes on top of the states: its activations, and the gradients while they are made.

The network itself runs forward and backward on torch's fake tensors, which have sizes and no content, and every block
of memory that an operation gives out is counted until it is freed. So what is kept, what is computed again and what
lies in the vocabulary's chunks is not estimated: it is what the code does. Kernels' own scratch memory is not seen.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM


@dataclass(frozen=True)
class MicroBatchMemory:
    """Bytes, over weights and states, while a micro-batch goes forward and backward."""

    forward: int
    """Kept at the end of forward, for backward."""
    gradients: int
    """Of all trained parameters, in their precision."""
    peaks: tuple[int, ...]
    """The highest point of each stretch; a stretch ends where the first layers, those in the middle or the last begin.
    Networks of three layers or more have the same stretches."""
    peaks_beside_sums: tuple[int, ...]

    @property
    def peak(self) -> int:
        """At the highest point where gradients begin from nothing: activations, and gradients as far as they are
        there."""
        return max(self.peaks)

    @property
    def peak_beside_sums(self) -> int:
        """The same without gradients that are finished: what comes on top where they are added to sums that lie there
        already, or are moved into DeepSpeed's buckets."""
        return max(self.peaks_beside_sums)


class FakeNetwork:
    """The network of a configuration without weights, as training sees it."""

    def __init__(self, config: AdaPonderConfig, dtype: torch.dtype, is_trained: Callable[[str], bool]) -> None:
        """is_trained: whether the parameter of that name is."""
        config = copy.deepcopy(config)
        if getattr(config, "_attn_implementation", None) != "eager":
            config._attn_implementation = "sdpa"
        # On the meta device nothing is drawn; autocast, which the gates switch off, does not know that device.
        with torch.device("meta"):
            model: Any = AdaPonderForCausalLM(config).train()
        model.to(dtype)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self.model: AdaPonderForCausalLM = model.to_empty(device="cpu")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = is_trained(name)

    def micro_batch(self, rows: int, seq_len: int, checkpointing: str, halting: str, ponder: bool) -> MicroBatchMemory:
        """halting: `AdaPonderConfig.halting`; where halted tokens are skipped, none are: every token goes through
        every pass. ponder: whether there is a ponder loss."""
        model = self.model
        model.config.halting = halting
        model.set_activation_checkpointing(checkpointing)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with self._mode:
            tokens = torch.zeros(rows, seq_len, dtype=torch.int64)
            count = _LiveMemory([*model.parameters(), *model.buffers(), tokens])
            hooks: list[Any] = [weight.register_post_accumulate_grad_hook(count.finished) for weight in weights]
            layers: Any = model.gpt_neox.layers
            places = ["first", *["middle"] * (len(layers) - 2), "last"]
            for layer, place, before in zip(layers, places, ["outside", *places], strict=False):
                hooks.append(layer.input_layernorm.register_forward_pre_hook(count.entering(place, before)))
            ponder_loss = {"ponder_weight": 0.1, "ponder_fraction": 0.1} if ponder else {}
            with count, _FusedAttention():
                loss: Any = model(input_ids=tokens, shift_labels=tokens, **ponder_loss).loss
                forward, count.phase = count.alive, "backward"
                loss.backward()
                del loss
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
        return MicroBatchMemory(forward, count.gradients, tuple(count.peaks), tuple(count.peaks_beside_sums))


class _LiveMemory(TorchDispatchMode):
    """Bytes of all blocks that operations gave out while this was on and that are still held, and their peak."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()
        self._known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in before}
        self._watched: dict[int, tuple[Any, int]] = {}
        self.alive = self.gradients = 0
        self.peaks, self.peaks_beside_sums = [0], [0]
        self.phase, self._stretch = "forward", ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            # Which tokens go on is data, and there is none: here all of them do.
            result = torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def finished(self, parameter: torch.Tensor) -> None:
        """The gradient of `parameter` is whole."""
        if parameter.grad is not None:
            self.gradients += parameter.grad.untyped_storage().nbytes()

    def entering(self, place: str, before: str) -> Callable[..., None]:
        """A hook for what the layers of a place call first. In backward, a layer is left for the one before it."""

        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            self._begin(place)
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda gradient: self._begin(before))

        return hook

    def _begin(self, place: str) -> None:
        stretch = f"{self.phase} {place}"
        if stretch != self._stretch:
            self._stretch = stretch
            self.peaks.append(0)
            self.peaks_beside_sums.append(0)
            self._look()

    def _look(self) -> None:
        self.peaks[-1] = max(self.peaks[-1], self.alive)
        self.peaks_beside_sums[-1] = max(self.peaks_beside_sums[-1], self.alive - self.gradients)

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known or key in self._watched:
            return
        size = storage.nbytes()
        self._watched[key] = (weakref.ref(storage, lambda _, key=key: self._freed(key)), size)
        self.alive += size
        self._look()

    def _freed(self, key: int) -> None:
        self.alive -= self._watched.pop(key)[1]


class _FusedAttention(TorchFunctionMode):
    """Attention as every fused kernel keeps it for backward: queries, keys, values, output and a number a query."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    attend: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

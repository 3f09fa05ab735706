"""Writing text: what transformers' `generate()` must know about a network with K caches in one."""

from __future__ import annotations

import copy
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationMixin


@dataclass
class _Notes:
    """What a running `generate()` notes of its steps."""

    writer: Any
    """The network whose text it is; an assistant writes drafts of its own meanwhile."""
    depths: list[torch.Tensor] = field(default_factory=list)
    """Of each step int64 [rows, tokens that the step wrote]."""
    ends: torch.Tensor | None = None
    """int64: the tokens that end a text."""


# Not on the model: two threads may write with the same one, as they do behind a streamer.
_NOTES: ContextVar[_Notes | None] = ContextVar("notes of the text being written", default=None)


class AdaPonderGenerationMixin(GenerationMixin):
    """`generate()` with the model's own cache, and with the depth of every token that it writes."""

    def generate(
        self: Any,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        *args: Any,
        return_depths: bool = False,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate()`; see there.

        return_depths: also give the passes spent on writing each new token - the depth of the token before it, whose
        last state predicts it - as int64 [B, new tokens], 0 for padding after a text's end. The result is then the pair
        (sequences, depths), or carries `depths` where `return_dict_in_generate` is set.
        """
        # Here too: one of them leads transformers away before it asks for a cache.
        _require_own_cache(kwargs.get("cache_implementation"))
        stock: Any = super()
        if not return_depths:
            return stock.generate(inputs, generation_config, *args, **kwargs)
        if "logits_to_keep" in kwargs:
            raise ValueError("return_depths and logits_to_keep are given: depths are noted where logits are")
        if kwargs.get("assistant_model") is self:
            raise ValueError("return_depths is given and the network is its own assistant: give another, or a copy")
        as_dict = kwargs.pop("return_dict_in_generate", None)
        if as_dict is None:
            as_dict = (generation_config or self.generation_config).return_dict_in_generate
        # transformers wants a setting in the configuration or beside it, not in both.
        if generation_config is None:
            kwargs["return_dict_in_generate"] = True
        else:
            generation_config = copy.deepcopy(generation_config)
            generation_config.return_dict_in_generate = True
        notes = _Notes(self)
        token = _NOTES.set(notes)
        try:
            written = stock.generate(inputs, generation_config, *args, **kwargs)
        finally:
            _NOTES.reset(token)
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        new_tokens = written.sequences.shape[1] - (1 if prompt is None else prompt.shape[1])
        written["depths"] = _depths(notes, written.sequences[:, -new_tokens:], written.get("beam_indices"))
        return written if as_dict else (written.sequences, written["depths"])

    def _update_model_kwargs_for_generation(
        self: Any, outputs: Any, model_kwargs: dict[str, Any], *args: Any, num_new_tokens: int = 1, **kwargs: Any
    ) -> dict[str, Any]:
        """Called by every way of decoding once a step, when it is known how many tokens the step has written."""
        notes = _NOTES.get()
        if notes is not None and notes.writer is self:
            # Of a draft's tokens the first are kept; each has logits, and so has the token before them.
            drafted = outputs.depths[:, -outputs.logits.shape[1] :]
            notes.depths.append(drafted[:, :num_new_tokens])
        stock: Any = super()
        return stock._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, num_new_tokens=num_new_tokens, **kwargs
        )

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        notes = _NOTES.get()
        if notes is not None and notes.writer is self:
            notes.ends = generation_config._eos_token_tensor
        _require_own_cache(generation_config.cache_implementation)
        if not generation_config.use_cache:
            return None
        if model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.new_cache()
        stock: Any = super()
        return stock._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What a forward is given at each step: the tokens that the cache does not hold yet."""
        imposed = kwargs.pop("imposed_depths", None)
        stock: Any = super()
        prepared = stock.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if imposed is not None:
            # Of as many columns as the finished text, so that those of this step are where its tokens are.
            cache = prepared.get("past_key_values")
            start = 0 if cache is None else cache.get_seq_length()
            prepared["imposed_depths"] = imposed[:, start : start + prepared["input_ids"].shape[1]]
        return prepared


def _require_own_cache(implementation: str | None) -> None:
    if implementation is not None:
        raise ValueError(
            f"cache_implementation is {implementation!r}: leave it out, this network has a cache of its own"
        )


def _depths(notes: _Notes, new: torch.Tensor, beams: torch.Tensor | None) -> torch.Tensor:
    """int64 [B, new tokens], 0 after a text's end. new: those tokens; beams: int32, transformers' `beam_indices`."""
    if beams is None:
        # Where stopping is checked a step late, there is a step too many.
        depths = torch.cat(notes.depths, dim=1)[:, : new.shape[1]].to(new.device)
        ended = torch.zeros_like(new, dtype=torch.bool)
    else:
        # Row beams[b, t] of step t predicted token t of text b; -1 after the end.
        steps = torch.stack([step[:, -1] for step in notes.depths[: new.shape[1]]], dim=1)
        depths = steps.to(new.device).gather(0, beams.clamp(min=0).long())
        ended = beams < 0
    if notes.ends is not None:
        ends = torch.isin(new, notes.ends.to(new.device)).long()
        ended = ended | (ends.cumsum(-1) - ends > 0)
    return depths.masked_fill(ended, 0)

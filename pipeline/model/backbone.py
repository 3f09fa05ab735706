"""Start from a checkpoint: stock Pythia and any other GPT-NeoX, or an AdaPonder's own folder.

What a checkpoint holds and what the network needs are compared by name, so that no weight is left at random unseen.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPTNeoXForCausalLM, PretrainedConfig, PreTrainedModel

from .configuration_adaponder import AdaPonderConfig

_PAUSES = "gpt_neox.pause_in."


def load_backbone(
    model_class: type[PreTrainedModel], where: str, dtype: torch.dtype, ponder_fields: dict[str, Any]
) -> Any:
    """The network of `model_class` with the weights at `where`; see `AdaPonderForCausalLM.from_backbone`."""
    AdaPonderConfig.check_ponder_fields(ponder_fields)
    described, _ = PretrainedConfig.get_config_dict(where)
    model_type = described.get("model_type")
    stored_gates = stored_pauses = 0
    if model_type == AdaPonderConfig.model_type:
        stored = AdaPonderConfig.from_pretrained(where)
        own_fields = {name: getattr(stored, name) for name in AdaPonderConfig.ponder_fields()}
        config = AdaPonderConfig.from_gpt_neox(stored, **{**own_fields, **ponder_fields})
        stored_gates, stored_pauses = stored.num_gates, stored.pause_tokens
        if stored_pauses and config.pause_tokens not in (0, stored_pauses):
            raise ValueError(f"{where}: it has {stored_pauses} pause tokens: pause_tokens is {config.pause_tokens}")
        model, missing, unexpected = _load(model_class, where, config=config, dtype=dtype)
    elif model_type == "gpt_neox":
        # Read by transformers' own class, which knows the names of older checkpoints (embed_out for lm_head).
        stock, missing, unexpected = _load(GPTNeoXForCausalLM, where, dtype=dtype)
        config = AdaPonderConfig.from_gpt_neox(stock.config, **ponder_fields)
        model, gates, _ = _load(model_class, None, config=config, state_dict=stock.state_dict(), dtype=dtype)
        missing |= gates
    else:
        raise ValueError(f"{where}: its config.json names model_type {model_type!r}: it must be gpt_neox or adaponder")
    new_gates = tuple(f"gates.{i}." for i in range(stored_gates, config.num_gates))
    spare_gates = tuple(f"gates.{i}." for i in range(config.num_gates, stored_gates))
    new = new_gates if stored_pauses else (*new_gates, _PAUSES)
    spare = spare_gates if config.pause_tokens else (*spare_gates, _PAUSES)
    missing = {key for key in missing if not key.startswith(new)}
    unexpected = {key for key in unexpected if not key.startswith(spare)}
    if missing or unexpected:
        raise ValueError(
            f"{where}: not the weights its config.json describes: "
            f"missing {', '.join(sorted(missing)) or 'none'}; unexpected {', '.join(sorted(unexpected)) or 'none'}"
        )
    return model


def _load(model_class: type[PreTrainedModel], where: str | None, **arguments: Any) -> tuple[Any, set[str], set[str]]:
    """`from_pretrained`, with the names of the weights that the checkpoint lacked, and of those left over."""
    loaded: Any = model_class.from_pretrained(where, output_loading_info=True, **arguments)
    model, info = loaded
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])

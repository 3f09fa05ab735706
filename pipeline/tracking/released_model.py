"""The registered model's code: a release behind MLflow's pyfunc. MLflow copies this file beside the weights.

It imports nothing of this project, so that a server needs only mlflow, torch and transformers.
"""

from __future__ import annotations

from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class ReleasedModel(PythonModel):
    """Continues prompts; `depths` are the passes that each new token took."""

    def load_context(self, context: Any) -> None:
        """Load the release's own code and weights."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["release"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()

    def predict(self, context, model_input, params=None):
        """One row a prompt (column `prompt`): `text`, prompt included, and `mean_depth` of the new tokens.

        Without type hints, which MLflow would take for the signature.
        """
        import torch

        wanted = {"max_new_tokens": 32, "greedy": True, "temperature": 1.0, "top_k": 50, "seed": 0, **(params or {})}
        sampling: dict[str, Any] = {"do_sample": False}
        if not wanted["greedy"]:
            sampling = {"do_sample": True, "temperature": wanted["temperature"], "top_k": wanted["top_k"]}
        rows = []
        for prompt in model_input["prompt"]:
            inputs = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            ids = inputs["input_ids"] if prompt else torch.tensor([[self.model.config.eos_token_id]])
            torch.manual_seed(wanted["seed"])
            text, depths = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=wanted["max_new_tokens"],
                return_depths=True,
                **sampling,
            )
            taken = depths[depths > 0].float()
            rows.append(
                {"text": self.tokenizer.decode(text[0]), "mean_depth": float(taken.mean()) if len(taken) else 0.0}
            )
        return pandas.DataFrame(rows)


set_model(ReleasedModel())

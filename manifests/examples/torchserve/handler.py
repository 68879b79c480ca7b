"""A TorchServe handler that loads its weights from HOLDFAST_MODEL_PATH: texts in, embeddings out.

Law: reads the weights where the gate verified them; the model archive holds this file and nothing else.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):  # type: ignore[misc]  # TorchServe carries no types
    """Mean-pooled embeddings of the last hidden state."""

    def initialize(self, context: Any) -> None:  # noqa: ARG002 - TorchServe's signature
        path = os.environ["HOLDFAST_MODEL_PATH"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModel.from_pretrained(path, local_files_only=True).to(self.device).eval()
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> Any:
        bodies = [row.get("body") or row.get("data") for row in data]
        texts = [body.decode() if isinstance(body, bytes | bytearray) else str(body) for body in bodies]
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)

    def inference(self, data: Any, *_args: Any, **_kwargs: Any) -> Any:
        with torch.inference_mode():
            hidden = self.model(**data).last_hidden_state
        mask = data["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    def postprocess(self, data: Any) -> list[list[float]]:
        found: list[list[float]] = data.cpu().tolist()
        return found

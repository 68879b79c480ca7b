"""Sentence embeddings: an encoder's hidden states through the modules that the model's own folder names.

Law: runs in the model's thread only. Padding is masked: other sequences of a batch change a vector by rounding only.
What the folder says is read in `embedding/recipe.py`; the modules are in `embedding/steps.py`.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch

from cached.contract.errors import Permanent
from server.engine.embedding.module_settings import SENTENCE, TOKENS
from server.engine.embedding.recipe import Recipe, read_recipe
from server.engine.embedding.steps import Features, build_step, output_dimension
from server.engine.embedding.texts import EmbeddingTexts, lower_case, refuse_adapter, tell_unknown_options
from server.engine.engine import Job, fail_without_numbers
from server.engine.model_files import LibraryOptions, Loaded, load_encoder, positions
from server.engine.passes import MAX_SEQUENCES, PassQueue
from server.engine.types import (
    About,
    AboutVectors,
    Embedded,
    EmbeddingInputs,
    EmbeddingRequest,
    EncodedText,
    InvalidRequest,
    ModelKind,
    Truncation,
)

EmbeddingJob = Job[EmbeddingInputs, Embedded]


class Encoder:
    """An encoder on its device; the model of `/v1/embeddings`."""

    def __init__(self, loaded: Loaded, recipe: Recipe, device: str) -> None:
        self._module = loaded.module
        self._recipe = recipe
        self._device = device
        self._texts = EmbeddingTexts(loaded.tokenizer, recipe, int(loaded.config.vocab_size), positions(loaded.config))
        self._takes_types = _takes(loaded.module, "token_type_ids")
        self._keeps_layers = bool(getattr(loaded.config, "output_hidden_states", False))
        self._steps = [build_step(settings, device, loaded.dtype) for settings in recipe.steps]
        self._vectors = describe_vectors(loaded, recipe)
        self._passes = PassQueue[EmbeddingJob, EncodedText, bytes](
            torch.device(device).type, lambda text: ((), len(text.ids)), MAX_SEQUENCES
        )
        self.about = About(
            ModelKind.EMBEDDINGS,
            self._texts.context,
            device,
            str(loaded.dtype).removeprefix("torch."),
            loaded.weight_bytes,
            batch=MAX_SEQUENCES,
            vectors=self._vectors,
        )

    @classmethod
    def load(cls, directory: Path, device: str, dtype: str) -> Encoder:
        """Load the encoder of a model's folder; raises `HoldfastError`."""
        recipe = read_recipe(directory)
        settings = recipe.transformer
        folder = directory / settings.folder
        refuse_adapter(folder)
        options = LibraryOptions(settings.config_options, settings.model_options, settings.tokenizer_options)
        loaded = load_encoder(folder, device, dtype, options, half=recipe.from_modules)
        tell_unknown_options(loaded.tokenizer, settings.tokenizer_options, folder)
        if settings.lower_case:
            lower_case(loaded.tokenizer, folder)
        if not recipe.from_modules and loaded.tokenizer.chat_template:
            raise Permanent(
                "unsupported_model",
                f"{directory}: expected modules.json beside a chat template, found none: sentence-transformers would "
                "write each text as a chat",
                "publish modules.json with the model, or serve it with --app",
            )
        return cls(loaded, recipe, device)

    def warm_up(self) -> None:
        """Embed a text and check the vector's shape; raises `Permanent` (`bad_model`) where it is wrong."""
        request = EmbeddingRequest(None, ("ready",), as_base64=False, truncation=Truncation())
        vectors = self.embed(list(self._texts.encode(request)))
        found = tuple(vectors.shape)
        if found != (1, self._vectors.whole) or not bool(torch.isfinite(vectors).all()):
            raise Permanent(
                "bad_model",
                f"a dummy inference: expected one finite vector of {self._vectors.whole} numbers, found shape {found}",
                "check that the weights are the ones that belong to config.json",
            )

    def prepare(self, request: EmbeddingRequest) -> EmbeddingInputs:
        """Turn a request into tokens; raises `InvalidRequest` where the model does not allow what it asks."""
        dimensions = self._recipe.truncate_dim
        if request.dimensions is not None:
            self._check_dimensions(request.dimensions)
            dimensions = request.dimensions
        return EmbeddingInputs(self._texts.encode(request), dimensions, request.normalize)

    def _check_dimensions(self, wanted: int) -> None:
        known, whole = self._vectors.shorter, self._vectors.whole
        if wanted == whole or (wanted < whole if known is None else wanted in known):
            return
        if known == ():
            expected = (
                f"{whole}, the model's own: it is not said to be trained for shorter vectors (is_matryoshka or "
                "matryoshka_dimensions in config.json, truncate_dim in config_sentence_transformers.json)"
            )
        elif known is None:
            expected = f"1 to {whole}"
        else:
            expected = f"one of {', '.join(map(str, known))}"
        raise InvalidRequest(f"dimensions: expected {expected}, found {wanted}", "dimensions")

    @property
    def room(self) -> int:
        """Return how many more jobs can be admitted; the inputs of jobs admitted together are batched together."""
        return self._passes.room

    @property
    def busy(self) -> bool:
        return self._passes.busy

    def step(self, arrived: list[EmbeddingJob]) -> None:
        """Admit the jobs, batch their inputs by length, and run one pass of the model."""
        live = self._passes.next_pass({job: job.request.texts for job in arrived})
        if live:
            vectors = self.embed([sequence.value for sequence in live])
            finite: list[bool] = vectors.isfinite().all(1).tolist()
            for sequence, row in zip(live, vectors, strict=True):
                sequence.result = _shape(row, sequence.job.request).numpy().astype("<f4").tobytes()
            for job in {one.job: None for one, is_finite in zip(live, finite, strict=True) if not is_finite}:
                fail_without_numbers(job)
        for job, found in self._passes.take_complete(live).items():
            job.emit(Embedded(tuple(found), sum(len(text.ids) for text in job.request.texts)))
            job.finish()

    def reset(self) -> None:
        self._passes.clear()

    @torch.inference_mode()
    def embed(self, texts: list[EncodedText]) -> torch.Tensor:
        """Embed texts in one pass; returns float32 of shape (texts, dimension), on the CPU."""
        width = max(len(text.ids) for text in texts)
        shape = (len(texts), width)
        ids, mask, types = (
            torch.full(shape, self._texts.padding_id),
            torch.zeros(shape).long(),
            torch.zeros(shape).long(),
        )
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            mask[row, : len(text.ids)] = 1
            if text.types is not None:
                types[row, : len(text.ids)] = torch.tensor(text.types)
        mask = mask.to(self._device)
        # A tokenizer gives types to all texts or to none; texts sent in tokens have zeros, as tokenizers give them.
        typed = self._takes_types and any(text.types is not None for text in texts)
        more = {"token_type_ids": types.to(self._device)} if typed else {}
        output = self._module(input_ids=ids.to(self._device), attention_mask=mask, return_dict=True, **more)
        features = Features(
            {TOKENS: output.last_hidden_state},
            mask,
            torch.tensor([text.prompt_tokens for text in texts], device=self._device),
            output.hidden_states if self._keeps_layers else None,
        )
        for step in self._steps:
            step(features)
        return features.values[SENTENCE].float().cpu()


def describe_vectors(loaded: Loaded, recipe: Recipe) -> AboutVectors:
    """Return what the model's vectors are. config.json says which shorter ones it is trained for, under the names that
    vLLM reads too; a `truncate_dim` of the authors says that it is trained for some."""
    config = loaded.config
    whole = output_dimension(recipe.steps, int(config.hidden_size))
    listed = getattr(config, "matryoshka_dimensions", None)
    if isinstance(listed, list | tuple) and all(type(one) is int for one in listed):
        shorter: tuple[int, ...] | None = tuple(sorted({one for one in listed if 1 <= one <= whole}))
    elif getattr(config, "is_matryoshka", False) is True or recipe.truncate_dim is not None:
        shorter = None
    else:
        shorter = ()
    return AboutVectors(
        dimension=min(whole, recipe.truncate_dim or whole),
        whole=whole,
        shorter=shorter,
        prompts=tuple(recipe.prompts),
        default_prompt=recipe.default_prompt,
        similarity=recipe.similarity,
    )


def _shape(vector: torch.Tensor, wanted: EmbeddingInputs) -> torch.Tensor:
    """Return the vector as its request wants it: cut first, then brought to unit length."""
    vector = vector[: wanted.dimensions]
    return torch.nn.functional.normalize(vector, p=2, dim=0) if wanted.normalize else vector


def _takes(module: torch.nn.Module, name: str) -> bool:
    """Whether the module's forward pass has this argument, or any."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())

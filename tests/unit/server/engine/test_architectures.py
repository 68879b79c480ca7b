"""Every architecture of the allow-lists answers as its library does; docs/models.md names each of them.

A handful runs with every test; the whole matrix is slow.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server.engine import architectures
from server.engine.classifier import Classifier
from server.engine.encoder import Encoder
from server.engine.engine import ThreadedEngine
from server.engine.kinds import read_kind
from server.engine.types import Activation, EmbeddingRequest, ModelKind, ScoringRequest
from tests.support.generating import Generating, Watched, ask, completion, engine, limits, load
from tests.support.serving import REPOSITORY
from tests.support.tiny_models import build
from tests.unit.server.conftest import save_tokenizer

_QUICK = {
    *("GPT2LMHeadModel", "Gemma2ForCausalLM", "MambaForCausalLM", "Qwen3_5ForCausalLM"),
    *("BertForSequenceClassification", "XLMRobertaForSequenceClassification", "Qwen3ForSequenceClassification"),
    *("bert", "xlm-roberta", "qwen3"),
    *("luke", "mpnet", "LukeForSequenceClassification", "MPNetForSequenceClassification"),  # positions after padding's
}
PROMPTS = ("Holdfasts anchor kelp", "a", "weights " * 9)
PAIRS = (("Holdfasts anchor kelp", "to rock"), ("a", "b"), ("weights " * 9, "x"))
_TOKENS = 10
_FEW_POSITIONS = {"max_position_embeddings": 40}

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of architectures by the dozen


def matrix(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in _QUICK else (pytest.mark.slow,)) for name in sorted(names)]


def save_padding_tokenizer(directory: Path) -> None:
    """A tokenizer of bytes that pads: sentence-transformers cannot do without."""
    save_tokenizer(directory)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = "<s>"
    tokenizer.save_pretrained(directory)


def generated(directory: Path, prompt: str) -> tuple[str, int]:
    """Greedy text and its number of tokens by transformers."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False, pad_token_id=1)[0]
    new = out[inputs["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(new, skip_special_tokens=True), len(new)


async def answers(running: Generating) -> list[list[tuple[str, int]]]:
    """The answers to the prompts one after the other, and together."""
    alone = [await ask(running, completion(prompt, _TOKENS)) for prompt in PROMPTS]
    together = await asyncio.gather(*(ask(running, completion(prompt, _TOKENS)) for prompt in PROMPTS))
    return [[(text, tokens) for [(text, _, tokens)] in found] for found in (alone, together)]


def events(model: Any, requests: Sequence[Any]) -> list[Any]:
    """The first event of each request to a model, one request after the other."""

    async def run() -> list[Any]:
        running: Any = ThreadedEngine(model, 64, Watched())
        found = []
        for request in requests:
            async with running.submit(request) as job:
                found.append(await anext(job.stream()))
        running.close()
        return found

    return asyncio.run(run())


def vectors(*rows: bytes) -> torch.Tensor:
    return torch.stack([torch.frombuffer(bytearray(row), dtype=torch.float32) for row in rows])


@pytest.mark.parametrize("architecture", matrix(architectures.GENERATORS))
def test_generated_text_equals_generate(architecture: str, tmp_path: Path) -> None:
    """Greedy text is that of transformers' `generate`, for a request alone and among others."""
    build(architecture, tmp_path)
    save_tokenizer(tmp_path)
    assert read_kind(tmp_path).kind is ModelKind.COMPLETIONS
    expected = [generated(tmp_path, prompt) for prompt in PROMPTS]
    watched = Watched()
    with engine(load(tmp_path, watched, limits()), watched) as running:
        alone, together = asyncio.run(answers(running))
    assert alone == expected
    assert together == expected


@pytest.mark.parametrize("architecture", matrix(architectures.CLASSIFIERS))
def test_scores_equal_cross_encoder(architecture: str, tmp_path: Path) -> None:
    """Scores of pairs are those of sentence-transformers' CrossEncoder, for a pair alone and among others."""
    from sentence_transformers import CrossEncoder

    build(architecture, tmp_path, pad_token_id=0, num_labels=1)
    save_padding_tokenizer(tmp_path)
    declared = read_kind(tmp_path)
    assert declared.kind is ModelKind.CLASSIFICATION
    library = CrossEncoder(str(tmp_path), device="cpu", activation_fn=torch.nn.Identity())
    expected = [float(library.predict([pair])[0]) for pair in PAIRS]
    classifier = Classifier.load(tmp_path, declared, "cpu", "float32")
    classifier.warm_up()

    requests = [ScoringRequest(None, pairs, Activation.NONE, None, "documents") for pairs in (*zip(PAIRS), PAIRS)]
    *apart, whole = events(classifier, requests)
    alone, together = [one.scores[0][0] for one in apart], [scores[0] for scores in whole.scores]
    assert alone == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert together == pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("model_type", matrix(architectures.ENCODERS))
def test_vectors_equal_sentence_transformers(model_type: str, tmp_path: Path) -> None:
    """A folder that says nothing of pooling embeds as sentence-transformers does, a text alone and among others."""
    from sentence_transformers import SentenceTransformer

    build(architectures.ENCODERS[model_type], tmp_path, model_type, pad_token_id=0)
    save_padding_tokenizer(tmp_path)
    assert read_kind(tmp_path).kind is ModelKind.EMBEDDINGS
    texts = [first + second for first, second in PAIRS]
    expected = torch.tensor(SentenceTransformer(str(tmp_path), device="cpu").encode(texts, batch_size=1))
    encoder = Encoder.load(tmp_path, "cpu", "float32")
    encoder.warm_up()
    *apart, whole = events(
        encoder, [EmbeddingRequest(None, one, as_base64=False) for one in (*zip(texts), tuple(texts))]
    )
    alone, together = vectors(*(one.vectors[0] for one in apart)), vectors(*whole.vectors)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", matrix(architectures.CLASSIFIERS | architectures.ENCODERS.keys()))
def test_a_text_as_long_as_the_context_is_answered(name: str, tmp_path: Path) -> None:
    """The context that is told is one that the model has positions for, whatever its padding's id takes of them."""
    encodes = name in architectures.ENCODERS
    few = {} if name.startswith("XLNet") else _FEW_POSITIONS  # which has no such number
    build(
        architectures.ENCODERS.get(name, name), tmp_path, name if encodes else None, pad_token_id=0, num_labels=1, **few
    )
    save_padding_tokenizer(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**said, "model_max_length": 10**30}))
    if encodes:
        encoder = Encoder.load(tmp_path, "cpu", "float32")
        encoder.warm_up()
        text = "a" * (encoder.about.context or 60)
        [answer] = events(encoder, [EmbeddingRequest(None, (text,), as_base64=False)])
        assert bool(vectors(*answer.vectors).isfinite().all())
    else:
        classifier = Classifier.load(tmp_path, read_kind(tmp_path), "cpu", "float32")
        classifier.warm_up()
        text = "a" * ((classifier.about.context or 60) - 5)
        request = ScoringRequest(None, ((text, "b" * 5),), Activation.NONE, None, "documents")
        [answer] = events(classifier, [request])
        assert len(answer.scores[0]) == 1


def test_every_architecture_is_named_in_the_docs() -> None:
    """docs/models.md has the whole allow-list, so that a user sees what is served before publishing it."""
    words = set((REPOSITORY / "docs" / "models.md").read_text().replace("`", " ").replace(",", " ").split())
    assert sorted((architectures.GENERATORS | architectures.CLASSIFIERS | architectures.ENCODERS.keys()) - words) == []

"""`/v1/rerank` and `/v1/classify` in vLLM's and in TEI's shape, over real models small enough to build."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
import transformers

from cached.commands import golden
from cached.contract.errors import Permanent
from cached.contract.golden import GOLDEN_NAME
from server.api.routes import private_application
from server.engine.classifier import Classifier
from server.engine.engine import ThreadedEngine
from server.engine.kinds import read_kind
from server.engine.types import Activation, InvalidRequest, ScoringRequest, Truncation
from server.lifecycle.admission import serve_privately
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.registry import Card, ModelRegistry, ServedClassifier
from server.lifecycle.snapshot import Snapshot
from tests.support.embedding import save_tokenizer as save_word_pieces
from tests.support.generating import limits
from tests.support.serving import running
from tests.support.tiny_models import build
from tests.unit.server.conftest import save_tokenizer

QUERY = "what holds fast?"
DOCUMENTS = ["a root-like anchor of kelp", "x", "weights " * 12, "a"]
LABELS = {"0": "sea", "1": "land", "2": "sky"}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # the libraries' own


def model(directory: Path, labels: int, **config: Any) -> Path:
    """A tiny BERT whose scores are apart, with this many labels, and these fields in its config.json."""
    build("BertForSequenceClassification", directory, pad_token_id=0, num_labels=labels)
    save_tokenizer(directory)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = "<s>"
    tokenizer.save_pretrained(directory)
    change(directory / "config.json", **config)
    return directory


def change(path: Path, **fields: Any) -> None:
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**said, **fields}))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("reranker"), 1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("classifier"), 3, id2label=LABELS)


def load(directory: Path) -> Classifier:
    found = Classifier.load(directory, read_kind(directory), "cpu", "float32")
    found.warm_up()
    return found


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[aiohttp.ClientSession]:
    found, metrics = load(directory), ServerMetrics().model("m")
    card = Card("m", Snapshot(Path("/m"), "m", None, None), found.about, 0)
    served = ServedClassifier(card, ThreadedEngine(found, 8, metrics), metrics)
    async with (
        serve_privately(private_application(ModelRegistry.of_one(served), limits())) as url,
        aiohttp.ClientSession(url) as client,
    ):
        yield client
    served.close()


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with client.post(path, json=body) as answer:
        found = await answer.json()
        assert answer.status == 200, found
        return found


async def refused(client: aiohttp.ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with client.post(path, json=body) as answer:
        assert answer.status == 400
        error: dict[str, Any] = (await answer.json())["error"]
        return error


def library(directory: Path, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(directory), device="cpu", **options)


def piped(directory: Path, texts: Any) -> list[dict[str, float]]:
    """Each text's scores by label, by transformers' pipeline."""
    pipeline: Any = transformers.pipeline("text-classification", model=str(directory), device="cpu")
    return [{item["label"]: item["score"] for item in found} for found in pipeline(texts, top_k=None)]


async def test_a_rerank_is_vllms_shape_with_the_librarys_scores(reranker: Path) -> None:
    """The best first, each with its document and the score of `CrossEncoder.rank`; usage counts all pairs' tokens."""
    ranked = library(reranker).rank(QUERY, DOCUMENTS)
    async with serving(reranker) as client:
        found = await post(client, "/v1/rerank", model="m", query=QUERY, documents=DOCUMENTS)
        best = await post(client, "/v2/rerank", query=QUERY, documents=[{"text": one} for one in DOCUMENTS], top_n=2)
    assert [item["index"] for item in found["results"]] == [item["corpus_id"] for item in ranked]
    scores = [item["relevance_score"] for item in found["results"]]
    assert scores == pytest.approx([float(item["score"]) for item in ranked], abs=1e-5)
    assert [item["document"]["text"] for item in found["results"]] == [DOCUMENTS[item["corpus_id"]] for item in ranked]
    assert found["id"].startswith("rerank-") and found["model"] == "m"
    assert found["usage"]["total_tokens"] == sum(len(QUERY) + len(one) for one in DOCUMENTS)
    assert [item["index"] for item in best["results"]] == [item["corpus_id"] for item in ranked[:2]]


async def test_a_rerank_is_teis_shape_where_it_is_asked_so(reranker: Path) -> None:
    """`texts` gets a bare list; `raw_scores` gives the logits, `return_text` the texts."""
    raw = library(reranker, activation_fn=torch.nn.Identity()).predict([(QUERY, one) for one in DOCUMENTS])
    async with serving(reranker) as client:
        plain = await post(client, "/rerank", query=QUERY, texts=DOCUMENTS)
        found = await post(client, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True, return_text=True)
    assert [set(item) for item in plain] == [{"index", "score"}] * len(DOCUMENTS)
    assert [item["index"] for item in plain] == [item["index"] for item in found]
    for item in found:
        assert item["score"] == pytest.approx(float(raw[item["index"]]), abs=1e-5)
        assert item["text"] == DOCUMENTS[item["index"]]


@pytest.mark.parametrize("problem", [None, "multi_label_classification", "single_label_classification", "regression"])
async def test_a_classification_has_the_pipelines_scores(classifier: Path, tmp_path: Path, problem: str | None) -> None:
    """`problem_type` and `id2label` are honoured: probabilities and labels are those of transformers' pipeline."""
    directory = model(tmp_path, 3, id2label=LABELS, problem_type=problem) if problem else classifier
    expected = piped(directory, DOCUMENTS)
    async with serving(directory) as client:
        found = await post(client, "/v1/classify", model="m", input=DOCUMENTS)
        tei = await post(client, "/predict", inputs=[[one] for one in DOCUMENTS])
    for item, scores, ranked in zip(found["data"], expected, tei, strict=True):
        assert dict(zip(LABELS.values(), item["probs"], strict=True)) == pytest.approx(scores, abs=1e-5)
        assert item["label"] == max(scores, key=scores.__getitem__)
        assert item["num_classes"] == 3
        assert {one["label"]: one["score"] for one in ranked} == pytest.approx(scores, abs=1e-5)
        assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)
    assert found["object"] == "list" and found["id"].startswith("classify-")
    assert found["usage"]["prompt_tokens"] == sum(map(len, DOCUMENTS))


async def test_a_pair_is_classified_as_a_pair(classifier: Path) -> None:
    """TEI's two texts in a list are one input of two parts, as `text_pair` of the pipeline."""
    [expected] = piped(classifier, [{"text": QUERY, "text_pair": "x"}])
    async with serving(classifier) as client:
        found = await post(client, "/predict", inputs=[QUERY, "x"])
    assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "name",
    ["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.activation.Tanh"],
)
@pytest.mark.parametrize("field", ["sentence_transformers", "sbert_ce_default_activation_function"])
async def test_the_folders_activation_is_honoured(tmp_path: Path, name: str, field: str) -> None:
    """config.json names the activation of a reranker, as newer and older sentence-transformers wrote it."""
    directory = model(tmp_path, 1, **{field: {"activation_fn": name} if field == "sentence_transformers" else name})
    expected = library(directory).predict([(QUERY, one) for one in DOCUMENTS])
    async with serving(directory) as client:
        found = await post(client, "/rerank", query=QUERY, texts=DOCUMENTS)
    assert sorted(item["score"] for item in found) == pytest.approx(sorted(map(float, expected)), abs=1e-5)


async def test_a_saved_cross_encoder_keeps_its_settings(reranker: Path, tmp_path: Path) -> None:
    """What `CrossEncoder.save` writes is served as it loads it: activation, default prompt, context, lower case."""
    saved = library(reranker, prompts={"ask": "question: "}, default_prompt_name="ask", activation_fn=torch.nn.Tanh())
    saved.save_pretrained(str(tmp_path))
    change(tmp_path / "sentence_bert_config.json", max_seq_length=40, do_lower_case=True)
    texts = ["Anchors", "KELP", "weights " * 12]
    expected = library(tmp_path).predict([(QUERY.upper(), one) for one in texts])
    async with serving(tmp_path) as client:
        found = await post(client, "/rerank", query=QUERY.upper(), texts=texts, truncate=True)
        assert (await refused(client, "/rerank", query=QUERY, texts=texts))["code"] == "context_length_exceeded"
        [card] = (await (await client.get("/v1/models")).json())["data"]
    scores = {item["index"]: item["score"] for item in found}
    assert [scores[index] for index in range(3)] == pytest.approx(list(map(float, expected)), abs=1e-5)
    assert (card["kind"], card["context_tokens"], card["labels"]) == ("classification", 40, ["LABEL_0"])


async def test_a_pair_that_the_library_writes_as_a_chat_is_not_ranked(tmp_path: Path) -> None:
    """Beside a chat template, without modules.json, `CrossEncoder` scores other texts; a text is still classified."""
    (model(tmp_path, 1) / "chat_template.jinja").write_text("{% for one in messages %}{{ one.content }}!{% endfor %}")
    [expected] = piped(tmp_path, ["x"])
    async with serving(tmp_path) as client:
        error = await refused(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS)
        found = await post(client, "/predict", inputs="x")
    assert "chat template and no modules.json" in error["message"]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-5)


async def test_a_text_beyond_the_context_is_refused_or_cut(reranker: Path) -> None:
    """By default nothing is truncated; `truncate` cuts as the library does, the longer of the two texts first."""
    texts = ["kelp " * 200, "y"]
    expected = library(reranker).predict([(QUERY, one) for one in texts])
    async with serving(reranker) as client:
        error = await refused(client, "/v1/rerank", query=QUERY, documents=texts)
        found = await post(client, "/v1/rerank", query=QUERY, documents=texts, truncate=True)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "documents")
    assert "512 tokens" in error["message"] and "truncate" in error["message"]
    scores = sorted(item["relevance_score"] for item in found["results"])
    assert scores == pytest.approx(sorted(map(float, expected)), abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "limit", "side"),
    [
        ({"truncate_prompt_tokens": 20}, 20, "right"),
        ({"truncate_prompt_tokens": -1}, 512, "right"),
        ({"truncate": True, "truncation_direction": "Left"}, 512, "left"),
        ({"truncate_prompt_tokens": 20, "truncation_direction": "Left"}, 20, "left"),
        ({"truncate_prompt_tokens": 30, "truncation_side": "left", "priority": 3}, 30, "left"),
    ],
)
async def test_a_request_says_how_its_inputs_are_cut(
    reranker: Path, asked: dict[str, Any], limit: int, side: str
) -> None:
    """Length and side of vLLM's and TEI's fields are the tokenizer's own; the next request is cut as the model has it,
    however long the text is."""
    texts = ["kelp and rock " * 9000, "y"]
    loaded = library(reranker, max_length=limit, processor_kwargs={"truncation_side": side})
    expected = sorted(float(score) for score in loaded.predict([(QUERY, one) for one in texts]))
    plain = sorted(float(score) for score in library(reranker).predict([(QUERY, one) for one in texts]))
    async with serving(reranker) as client:
        found = await post(client, "/rerank", query=QUERY, texts=texts, **asked)
        after = await post(client, "/rerank", query=QUERY, texts=texts, truncate=True)
        ids = await post(client, "/v1/classify", input=[list(range(2, 30))], truncate_prompt_tokens=9)
        error = await refused(client, "/rerank", query=QUERY, texts=texts)
    assert sorted(item["score"] for item in found) == pytest.approx(expected, abs=1e-5)
    assert sorted(item["score"] for item in after) == pytest.approx(plain, abs=1e-5)
    assert ids["usage"]["prompt_tokens"] == 9
    assert error["code"] == "context_length_exceeded" and "truncate: true" in error["message"]


def test_a_limit_below_the_special_tokens_is_refused(tmp_path: Path) -> None:
    """What no cut brings to the wanted length is told, and is not scored at another."""
    build("BertForSequenceClassification", tmp_path, pad_token_id=0, num_labels=1)
    save_word_pieces(tmp_path)
    found = Classifier.load(tmp_path, read_kind(tmp_path), "cpu", "float32")
    with pytest.raises(InvalidRequest, match="documents: it cannot be cut to 2 tokens"):
        found.prepare(ScoringRequest(None, (("held", "fast"),), Activation.NONE, Truncation(2), "documents"))


async def test_a_model_answers_only_what_it_computes(classifier: Path) -> None:
    """A model of several labels does not rerank, and none of these embeds or generates; each is told where to go."""
    async with serving(classifier) as client:
        for more in ({}, {"raw_scores": True}, {"use_activation": False}):
            error = await refused(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS, **more)
            assert "3 labels" in error["message"] and "/v1/classify" in error["message"]
        for path, body in (("/v1/embeddings", {"input": "x"}), ("/v1/completions", {"prompt": "x"})):
            error = await refused(client, path, **body)
            assert error["code"] == "unsupported_operation" and "/v1/rerank and /v1/classify" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["x"]}, "query"),
        ("/v1/rerank", {"query": "", "documents": ["x"]}, "query"),
        ("/v1/rerank", {"query": "x"}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": [{"image": "y"}]}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "chunks": 3}, "chunks"),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "truncate_prompt_tokens": 513}, "truncate_prompt_tokens"),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/rerank", {"query": "x", "texts": ["y"], "truncation_direction": "left"}, "truncation_direction"),
        (
            "/v1/rerank",
            {"query": "x", "texts": ["y"], "truncate": True, "truncation_direction": "up"},
            "truncation_direction",
        ),
        ("/v1/classify", {"input": "", "truncate_prompt_tokens": 4}, "input"),
        (
            "/v1/classify",
            {"input": "x", "truncate": True, "truncation_direction": "Left", "truncation_side": "right"},
            "truncation_side",
        ),
        ("/v1/classify", {"input": "x", "truncate": False, "truncate_prompt_tokens": 4}, "truncate"),
        (
            "/v1/rerank",
            {"query": "x", "documents": ["y"], "use_activation": True, "raw_scores": True},
            "use_activation",
        ),
        ("/v1/classify", {}, "input"),
        ("/v1/classify", {"input": []}, "input"),
        ("/v1/classify", {"input": [["x", "y"]]}, "input"),
        ("/v1/classify", {"input": [[999]]}, "input"),
        ("/v1/classify", {"inputs": [["x", "y", "z"]]}, "inputs"),
        ("/v1/classify", {"input": "x", "softmax": False}, "softmax"),
    ],
)
async def test_a_wrong_request_is_refused_by_its_field(
    shared: aiohttp.ClientSession, path: str, body: dict[str, Any], param: str
) -> None:
    """Nothing is ignored: a field that is wrong, unknown or without effect here is named."""
    error = await refused(shared, path, **body)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


@pytest.fixture
async def shared(reranker: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with serving(reranker) as client:
        yield client


@pytest.mark.parametrize(
    ("file", "fields", "named"),
    [
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, "Softmax"),
        ("config.json", {"sentence_transformers": {"activation_fn": "evil.Activation"}}, "evil.Activation"),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length"),
        ("sentence_bert_config.json", {"unheard_of": 1}, "unheard_of"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length"),
        ("config_sentence_transformers.json", {"default_prompt_name": "none"}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"keep_in_fp32_modules": ["0"]}, "keep_in_fp32_modules"),
        ("config_sentence_transformers.json", {"requirements": {"torch": ">=99"}}, "torch>=99"),
        ("config_sentence_transformers.json", {"prompts": ["x"], "default_prompt_name": "x"}, "prompts"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.linear.Sigmoid"}, "linear.Sigmoid"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
        ("sentence_bert_config.json", {"config_args": {"unheard_of": 1}}, "unheard_of"),
        ("adapter_config.json", {"peft_type": "LORA"}, "adapter"),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused(
    reranker: Path, tmp_path: Path, file: str, fields: dict[str, Any], named: str
) -> None:
    """A field of the folder that would change the scores is honoured or named; the weights are not read for it."""
    library(reranker).save_pretrained(str(tmp_path))
    if file == "config.json":
        change(tmp_path / "config_sentence_transformers.json", activation_fn=None)
    change(tmp_path / file, **fields)
    with pytest.raises(Permanent, match=named):
        load(tmp_path)


def other_settings_file(directory: Path) -> None:
    change(directory / BERT, max_seq_length=20)
    (directory / BERT).rename(directory / "sentence_roberta_config.json")


def own_folder(directory: Path) -> None:
    (directory / "0_T").mkdir()
    for path in [one for one in directory.iterdir() if one.is_file() and one.name not in ("modules.json", ST)]:
        path.rename(directory / "0_T" / path.name)
    [module] = json.loads((directory / "modules.json").read_text())
    (directory / "modules.json").write_text(json.dumps([{**module, "path": "0_T"}]))


BERT, ST, TOKENIZER = "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"


def longer_than_the_tokenizer_says(directory: Path) -> None:
    change(directory / TOKENIZER, model_max_length=16)
    change(directory / BERT, max_seq_length=20)


def without_activation(directory: Path) -> None:
    change(directory / ST, activation_fn=None)
    change(directory / "config.json", sentence_transformers="none")


HONOURED: dict[str, Callable[[Path], None]] = {
    "max_seq_length": lambda at: change(at / BERT, max_seq_length=20),
    "max_seq_length in place of model_max_length": longer_than_the_tokenizer_says,
    "another settings file": other_settings_file,
    "the transformer's own folder": own_folder,
    "processing_kwargs": lambda at: change(at / BERT, processing_kwargs={"text": {"max_length": 14}}),
    "no special tokens": lambda at: change(at / BERT, processing_kwargs={"text": {"add_special_tokens": False}}),
    "tokenizer_args": lambda at: change(at / BERT, tokenizer_args={"truncation_side": "left", "model_max_length": 18}),
    "config_kwargs": lambda at: change(at / BERT, config_kwargs={"hidden_act": "relu"}),
    "model_kwargs": lambda at: change(at / BERT, model_kwargs={"dtype": "bfloat16"}),
    "dtype": lambda at: change(at / "config.json", dtype="bfloat16"),
    "do_lower_case": lambda at: change(at / BERT, do_lower_case=True),
    "default_prompt_name": lambda at: change(at / ST, prompts={"ask": "question: "}, default_prompt_name="ask"),
    "requirements": lambda at: change(at / ST, requirements={"transformers": ">=5"}),
    "activation_fn": lambda at: change(at / ST, activation_fn="torch.nn.modules.activation.LeakyReLU"),
    "activation of torch.nn": lambda at: change(at / ST, activation_fn="torch.nn.Softsign"),
    "no activation": without_activation,
}


@pytest.mark.parametrize("name", HONOURED)
def test_a_setting_is_honoured_as_the_library_honours_it(reranker: Path, tmp_path: Path, name: str) -> None:
    """What the files of a CrossEncoder say changes the scores here as it changes those of `CrossEncoder.predict`."""
    library(reranker).save_pretrained(str(tmp_path))
    HONOURED[name](tmp_path)
    pairs = [(QUERY.upper(), one) for one in DOCUMENTS]
    loaded = library(tmp_path)
    expected = [float(loaded.predict([pair])[0]) for pair in pairs]
    found = Classifier.load(tmp_path, read_kind(tmp_path), "cpu", "auto")
    requests = [ScoringRequest(None, (pair,), Activation.RANKING, Truncation(), "documents") for pair in pairs]
    scores = [found.score([found.prepare(one).inputs[0]])[0] for one in requests]
    assert [float(found.activate(row, Activation.RANKING)) for row in scores] == pytest.approx(expected, abs=1e-5)


async def test_scores_are_the_same_alone_and_together(reranker: Path) -> None:
    """A request's scores do not depend on what else is in its batch, whatever the lengths."""
    async with serving(reranker) as client:
        together = await post(client, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True)
        alone = [await post(client, "/rerank", query=QUERY, texts=[one], raw_scores=True) for one in DOCUMENTS]
    for item in together:
        assert item["score"] == pytest.approx(alone[item["index"]][0]["score"], abs=1e-4)


def test_a_server_of_a_reranker_is_ready_and_keeps_its_golden_predictions(reranker: Path, tmp_path: Path) -> None:
    """The process loads and lists a classifier as any model; what `golden record` wrote agrees at its restart."""
    directory = tmp_path / "model"
    shutil.copytree(reranker, directory)
    requests = tmp_path / "requests"
    rerank = {"path": "/v1/rerank", "request": {"query": QUERY, "documents": DOCUMENTS}}
    requests.write_text(json.dumps(rerank) + "\n")
    options = ("--model-path", str(directory), "--device", "cpu")
    with running(tmp_path / "one.log", *options) as server:
        output = str(directory / GOLDEN_NAME)
        recorded = ["record", server.url, "--output", output, "--input", "kelp", "--requests", str(requests)]
        assert golden.main(recorded) == 0
    with running(tmp_path / "two.log", *options) as server:
        [card] = json.loads(server.get("/v1/models")[1])["data"]
    assert (card["kind"], card["golden"]["agrees"], card["golden"]["cases"]) == ("classification", True, 2)

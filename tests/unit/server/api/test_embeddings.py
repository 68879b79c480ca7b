from __future__ import annotations

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
import torch
import transformers

from cached.contract.errors import Permanent
from server.api import responses, routes
from server.api.listener import Listener
from server.api.probes import Probes
from server.engine.embedding.module_settings import POOLING_MODES, NormalizeSettings, PoolingSettings, StepSettings
from server.engine.embedding.recipe import read_recipe
from server.engine.embedding.steps import pool
from server.engine.encoder import EmbeddingJob, Encoder
from server.engine.engine import ThreadedEngine
from server.engine.types import About, Embedded, EmbeddingInputs, EmbeddingRequest, EncodedText, ModelKind
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from server.lifecycle.registry import Card, ModelRegistry, ServedEncoder
from server.lifecycle.snapshot import Snapshot
from tests.support.embedding import build, by_library, write
from tests.support.generating import limits
from tests.support.serving import LIMITS, ServerProcess

TEXTS = [
    "A holdfast anchors kelp to rock.",
    "hello",
    "Ein längerer Satz mit Umlauten — und Zeichen aus anderen Schriften: 日本語, emoji 🌊.",
    "weights " * 120,
]
TOLERANCE = 1e-5
Vectors = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def plain(minilm: Path) -> Vectors:
    """The texts' embeddings by plain transformers, one text at a time: mean pooling, then unit length."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(minilm)
    model: Any = transformers.AutoModel.from_pretrained(minilm)
    rows = []
    for text in TEXTS:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        rows.append(torch.nn.functional.normalize(states.mean(1), dim=1)[0].numpy())
    return np.stack(rows)


@pytest.fixture
def client(embeddings_server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embeddings_server.url}/v1", api_key="none", max_retries=0)


def vectors(answer: openai.types.CreateEmbeddingResponse) -> Vectors:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], np.float32)


def test_embeddings_equal_plain_transformers(client: openai.OpenAI, plain: Vectors) -> None:
    """A batch of texts of all lengths, asked for by OpenAI's client, has the vectors of plain transformers."""
    answer = client.embeddings.create(model="minilm", input=TEXTS)
    assert np.abs(vectors(answer) - plain).max() <= TOLERANCE
    assert answer.model == "minilm"


def test_encodings_and_token_input_agree(client: openai.OpenAI, minilm: Path, plain: Vectors) -> None:
    """Numbers, base64, one text and its token ids give one and the same vector, and usage counts the tokens."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(minilm)
    ids = tokenizer.encode(TEXTS[0])
    for wanted in (TEXTS[0], [TEXTS[0]], ids, [ids]):
        numbers = client.embeddings.create(model="minilm", input=wanted, encoding_format="float")
        packed = client.embeddings.create(model="minilm", input=wanted, encoding_format="base64")
        text: Any = packed.data[0].embedding
        decoded = np.frombuffer(base64.b64decode(text), "<f4") if isinstance(text, str) else text
        assert np.abs(vectors(numbers)[0] - plain[0]).max() <= TOLERANCE
        assert np.array_equal(np.asarray(decoded, np.float32), vectors(numbers)[0])
        assert numbers.usage.prompt_tokens == numbers.usage.total_tokens == len(ids)


async def test_concurrent_requests_get_their_own_vectors(embeddings_server: ServerProcess, plain: Vectors) -> None:
    """Requests that are batched together each get the vectors of their own texts."""
    async with openai.AsyncOpenAI(base_url=f"{embeddings_server.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(index: int) -> None:
            answer = await client.embeddings.create(model="minilm", input=TEXTS[index])
            assert np.abs(vectors(answer)[0] - plain[index]).max() <= TOLERANCE

        async with asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(ask(number % len(TEXTS)))


def test_more_inputs_than_one_pass_takes(client: openai.OpenAI, plain: Vectors) -> None:
    """Inputs beyond one batch come back complete and in order."""
    order = [index % 3 for index in range(150)]
    answer = client.embeddings.create(model="minilm", input=[TEXTS[index] for index in order])
    assert np.abs(vectors(answer) - plain[order]).max() <= TOLERANCE


def test_an_input_beyond_the_context_is_refused(client: openai.OpenAI) -> None:
    """A text of more tokens than the model's own files allow (256, of 512 positions) is a 400, never cut in silence."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="minilm", input=["hello", "weights " * 600])
    assert caught.value.code == "context_length_exceeded"
    assert "256" in caught.value.message


def test_a_text_cut_on_request_has_the_librarys_vector(client: openai.OpenAI, minilm: Path) -> None:
    """With `truncate`, a text of many contexts has the vector of `SentenceTransformer.encode`, which cuts always."""
    texts = ["kelp " * 300, "weights " * 2000]
    answer = client.embeddings.create(model="minilm", input=texts, extra_body={"truncate": True})
    assert np.abs(vectors(answer) - by_library(minilm, texts)).max() <= TOLERANCE
    assert answer.usage.prompt_tokens == 512


def test_what_is_told_of_an_embedding_model(client: openai.OpenAI) -> None:
    """`/v1/models` tells the context of the model's own files, its dimension and its prompts."""
    told = client.models.retrieve("minilm").model_dump()
    assert told["context_tokens"] == 256
    assert told["embedding"] == {
        "dimension": 384,
        "dimensions": [],
        "prompts": ["query", "document"],
        "default_prompt": None,
        "similarity": None,
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 100}, "dimensions"),
        ({"prompt_name": "passage"}, "prompt_name"),
        ({"truncate_prompt_tokens": 257}, "truncate_prompt_tokens"),
        ({"truncation_direction": "Left"}, "truncation_direction"),
    ],
)
def test_a_field_that_the_model_does_not_allow_is_a_400(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    """A shorter vector, a prompt or a length that the model does not have is refused by the field's name."""
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        client.embeddings.create(model="minilm", input="kelp", extra_body=fields)
    assert caught.value.param == param


def test_tokens_out_of_the_vocabulary_are_refused(client: openai.OpenAI) -> None:
    """A token id the model does not have is a 400 that says which ids there are."""
    with pytest.raises(openai.BadRequestError, match="30521"):
        client.embeddings.create(model="minilm", input=[[101, 30522]])


def test_completions_of_an_encoder_are_refused(client: openai.OpenAI) -> None:
    """The wrong kind of request is a 400 that says what the model answers."""
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings") as caught:
        client.completions.create(model="minilm", prompt="x")
    assert caught.value.param == "model"


def inputs(*texts: list[int]) -> EmbeddingInputs:
    """A request in tokens."""
    return EmbeddingInputs(tuple(EncodedText(tuple(ids)) for ids in texts))


class Prepared:
    """An encoder that has its vectors ready."""

    room = 1
    busy = False

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded

    def prepare(self, _request: EmbeddingRequest) -> EmbeddingInputs:
        return inputs([0])

    def step(self, arrived: list[EmbeddingJob]) -> None:
        for job in arrived:
            job.emit(self.embedded)
            job.finish()

    def reset(self) -> None:
        """Nothing is kept."""


async def test_many_vectors_are_written_without_holding_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes and streams are answered between two vectors: two thousand of them, as numbers, take seconds to write."""
    turns = 0
    seen: list[int] = []
    numbers = responses._numbers

    def looked(vector: bytes) -> list[float]:
        seen.append(turns)
        return numbers(vector)

    monkeypatch.setattr(responses, "_numbers", looked)
    metrics = ServerMetrics()
    readiness = ServerReadiness(metrics)
    embedded = Embedded(tuple(np.array([index], np.float32).tobytes() for index in range(100)), 1)
    card = Card("m", Snapshot(Path("/m"), "m", None, None), About(ModelKind.EMBEDDINGS, 1, "cpu", "float32", 1), 0)
    measured = metrics.model("m")
    served = ServedEncoder(card, ThreadedEngine(Prepared(embedded), 8, measured), measured)
    async with Listener(Probes(readiness, metrics), LIMITS) as listener:
        url = await listener.listen("127.0.0.1", 0)
        await listener.serve(routes.application(ModelRegistry.of_one(served), limits()), cancel_when_gone=True)
        readiness.enter(Ready())

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answer = await client.embeddings.create(model="m", input="x", encoding_format="float")
        running.cancel()
        served.close()
    assert [item.embedding for item in answer.data] == [[float(index)] for index in range(100)]
    assert seen == sorted(set(seen)) and len(seen) == 100


async def test_the_fields_of_a_request_reach_the_model(tmp_path: Path) -> None:
    """Prompt, input type, dimensions, unit length and cut, each asked over HTTP, are what the library is asked for."""
    build(tmp_path)
    prompts = {"query": "Query: ", "document": "Held: "}
    write(tmp_path, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    write(tmp_path, "config.json", is_matryoshka=True)
    encoder = Encoder.load(tmp_path, "cpu", "auto")
    metrics = ServerMetrics()
    readiness = ServerReadiness(metrics)
    measured = metrics.model("m")
    card = Card("m", Snapshot(tmp_path, "m", None, None), encoder.about, 0)
    served = ServedEncoder(card, ThreadedEngine(encoder, 8, measured), measured)
    text = "kelp of many " * 9
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"prompt_name": "document"}, {"prompt_name": "document"}),
        ({"input_type": "passage"}, {"call": "encode_document"}),
        ({"dimensions": 5}, {"truncate_dim": 5}),
        ({"dimensions": 5, "normalize": True}, {"truncate_dim": 5, "normalize_embeddings": True}),
        ({"truncate_prompt_tokens": 7}, {"processing_kwargs": {"text": {"max_length": 7}}}),
        ({"truncate_prompt_tokens": -1}, {}),
    ]
    async with Listener(Probes(readiness, metrics), LIMITS) as listener:
        url = await listener.listen("127.0.0.1", 0)
        await listener.serve(routes.application(ModelRegistry.of_one(served), limits()), cancel_when_gone=True)
        readiness.enter(Ready())
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for fields, library in asked:
                answer = await client.embeddings.create(model="m", input=text, extra_body=fields)
                expected = by_library(tmp_path, [text], **library)
                found = vectors(answer)
                assert found.shape == expected.shape
                assert np.abs(found - expected).max() <= TOLERANCE, fields
        served.close()


async def test_a_pass_on_a_cpu_is_short(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model says nothing until a pass is over, and is taken to stand still where that takes long."""
    encoder = Encoder.load(minilm, "cpu", "float32")
    passes: list[list[int]] = []

    def embed(texts: list[EncodedText]) -> torch.Tensor:
        passes.append([len(text.ids) for text in texts])
        return torch.zeros(len(texts), 384)

    monkeypatch.setattr(encoder, "embed", embed)
    job = EmbeddingJob(inputs(*([0] * 256 for _ in range(64)), [0] * 512, [0]))
    encoder.step([job])
    while encoder.busy:
        encoder.step([])
    assert max(max(lengths) * len(lengths) for lengths in passes) <= 2048
    assert sum(map(len, passes)) == 66 and len(passes) < 12
    assert len((await anext(job.stream())).vectors) == 66


async def test_vectors_that_are_no_numbers_fail_their_request_alone(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in one input's vector fails the request it came with; the others in the pass are answered."""
    encoder = Encoder.load(minilm, "cpu", "float32")

    def embed(texts: list[EncodedText]) -> torch.Tensor:
        return torch.tensor([[torch.nan if text.ids == (7,) else 0.5] * 384 for text in texts])

    monkeypatch.setattr(encoder, "embed", embed)
    bad, good = EmbeddingJob(inputs([1], [7])), EmbeddingJob(inputs([1], [2]))
    encoder.step([bad, good])
    assert len((await anext(good.stream())).vectors) == 2
    with pytest.raises(Permanent, match="NaN or infinite"):
        await anext(bad.stream())


def test_the_cpu_is_announced_loudly_once(embeddings_server: ServerProcess) -> None:
    """`--device auto` without a GPU says so in one warning, with the reason."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    log = embeddings_server.log.read_text()
    assert log.count("NO GPU") == 1


def test_a_folder_without_a_lease_is_served_and_said_once(embeddings_server: ServerProcess) -> None:
    """A folder that is no snapshot is served, with one line that nothing keeps it."""
    assert embeddings_server.log.read_text().count("no lease is held") == 1


def test_the_weights_pages_stay_the_page_caches(embeddings_server: ServerProcess) -> None:
    """In the serving process the mapped weights have no page of its own: nothing was written, nothing copied."""
    smaps = Path(f"/proc/{embeddings_server.process.pid}/smaps").read_text()
    mapping = smaps[smaps.index("model.safetensors") :]
    figures = dict(line.split(":", 1) for line in mapping.splitlines()[1:25] if ":" in line)
    assert figures["Anonymous"].split() == ["0", "kB"]
    assert figures["Private_Dirty"].split() == ["0", "kB"]
    assert int(figures["Rss"].split()[0]) > 0


def modules(folder: Path, pooling: dict[str, Any], *more: str) -> Path:
    """Write sentence-transformers' files into `folder`."""
    package = "sentence_transformers.models"
    listed = [{"name": "0", "path": "", "type": f"{package}.Transformer"}]
    for number, kind in enumerate(("Pooling", *more), 1):
        listed.append({"name": str(number), "path": f"{number}_{kind}", "type": f"{package}.{kind}"})
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize(
    ("pooling", "more", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, (), (PoolingSettings(("cls",)),)),
        ({"pooling_mode_mean_tokens": True}, ("Normalize",), (PoolingSettings(), NormalizeSettings())),
        ({"pooling_mode": "lasttoken"}, ("Normalize",), (PoolingSettings(("lasttoken",)), NormalizeSettings())),
        ({"pooling_mode": "max"}, (), (PoolingSettings(("max",)),)),
    ],
)
def test_the_folders_own_pooling_is_used(
    tmp_path: Path, pooling: dict[str, Any], more: tuple[str, ...], expected: tuple[StepSettings, ...]
) -> None:
    """sentence-transformers' files, old keys and new, decide pooling and normalization."""
    assert read_recipe(modules(tmp_path / "m", pooling, *more)).steps == expected


def test_without_those_files_the_mean_is_taken(tmp_path: Path) -> None:
    """A plain encoder's folder is pooled by the mean, not normalized."""
    assert read_recipe(tmp_path).steps == (PoolingSettings(),)


def test_cls_pooling_without_normalization_end_to_end(minilm: Path, tmp_path: Path) -> None:
    """With cls pooling the vector is the first hidden state itself."""
    folder = tmp_path / "m"
    shutil.copytree(minilm, folder)
    shutil.rmtree(folder / "1_Pooling")
    modules(folder, {"pooling_mode_cls_token": True})
    encoder = Encoder.load(folder, "cpu", "auto")
    encoder.warm_up()
    plain: Any = transformers.AutoModel.from_pretrained(minilm)
    ids = [101, 7592, 102]
    with torch.inference_mode():
        expected = plain(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
    assert (
        encoder.embed(list(inputs(ids, [101, *range(2000, 2050), 102]).texts))[0] - expected
    ).abs().max() <= TOLERANCE


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_padding_never_counts(mode: str) -> None:
    """What stands in padded places changes no vector."""
    states = torch.randn(1, 3, 8)
    padded = torch.cat([states, torch.full((1, 2, 8), 1e9)], dim=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    assert torch.allclose(pool(padded, mask, mode), pool(states, mask[:, :3], mode))

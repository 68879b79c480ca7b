from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from cached.contract.annotations import MODELS, MOUNT_PATH
from cached.contract.layout import PublicLayout
from tests.support.generating import Watched, limits, load
from tests.support.lora import ALL, llama_adapter
from tests.support.pods import inject, make_pod
from tests.support.serving import failing, running
from tests.support.snapshots import make_public
from tests.support.versions import add_version


@pytest.fixture
def public(tmp_path: Path, llama: Path) -> PublicLayout:
    """A public folder with a Llama, an adapter for it, and one for nothing that is here."""
    public = make_public(tmp_path / "public")
    add_version(public, "acme/tiny@v1", llama)
    add_version(public, "support@v7", llama_adapter(tmp_path / "support", llama, 1))
    wrong = llama_adapter(tmp_path / "wrong", llama, 2, ALL)
    config = wrong / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 5}))
    add_version(public, "wrong@v1", wrong)
    return public


def test_the_injectors_variables_are_all_a_server_needs(public: PublicLayout, minilm: Path, tmp_path: Path) -> None:
    """In a pod that asks for several models a server without options serves each by its alias, an adapter beside its
    base and an encoder too; its metrics tell them apart."""
    add_version(public, "minilm@1", minilm)
    asked = {MODELS: "base=acme/tiny@v1,Support.bot=support@v7,minilm@1", MOUNT_PATH: str(public.path)}
    container = inject(make_pod(asked))["spec"]["containers"][0]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    with (
        running(tmp_path / "log", variables={**variables, "HOLDFAST_DEVICE": "cpu"}) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        listed = {model.id: model.model_dump() for model in client.models.list()}
        assert set(listed) == {"base", "Support.bot", "minilm"}
        assert [listed[name]["parent"] for name in ("base", "Support.bot", "minilm")] == [None, "base", None]
        texts = {}
        for name in ("base", "Support.bot", "support@v7"):
            answer = client.completions.create(model=name, prompt="hold", max_tokens=12, temperature=0)
            texts[name] = answer.choices[0].text
        assert texts["Support.bot"] == texts["support@v7"] != texts["base"]
        assert len(client.embeddings.create(model="minilm", input="kelp").data[0].embedding) == 384
        with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
            client.embeddings.create(model="Support.bot", input="kelp")
        assert server.metric('holdfast_server_weights_bytes{model="Support.bot"}') > 0
        asked_of = 'holdfast_server_requests_total{endpoint="/v1/completions",model="%s",status="200"}'
        assert server.metric(asked_of % "Support.bot") == 2
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ("base=acme/tiny@v1,lora=wrong@v1", "expected shape (5, "),
        ("base=acme/tiny@v1,gone=acme/gone@v1", "expected a model's folder at"),
        ("base=acme/tiny@v1,base=support@v7", "base more than once"),
    ],
)
def test_one_that_cannot_be_had_ends_the_start_with_its_reason(public: PublicLayout, models: str, reason: str) -> None:
    """A server that was told several models is ready with all or not at all."""
    done = failing("--root", str(public.path), "--models", models, "--device", "cpu")
    assert done.returncode == (2 if "more than once" in reason else 1)
    assert reason in done.stderr.splitlines()[-1]


def test_models_share_the_memory_for_keys_and_values(llama: Path) -> None:
    """With another model beside it a generator has half of it, and all of it again when that one is gone."""
    generator = load(llama, Watched(), limits(cache_bytes=1 << 20))
    whole = generator.about.context
    generator.share_memory(2)
    half = generator.about.context
    assert whole is not None and half is not None and half < whole < 2 * half + 300
    generator.share_memory(1)
    assert generator.about.context == whole

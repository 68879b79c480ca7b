"""`hf://` addresses: one way to read each, and nothing malformed."""

from __future__ import annotations

import pytest
from huggingface_hub import HfUri, parse_hf_uri

from cached.contract.errors import Permanent
from cached.sources.huggingface.address import HubAddress

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://acme/model", HubAddress("acme/model", "main", "")),
        ("hf://models/acme/model@v1.0", HubAddress("acme/model", "v1.0", "")),  # as huggingface_hub writes it
        ("hf://models/acme/model", HubAddress("acme/model", "main", "")),
        ("hf://models/gpt2@v1.0", HubAddress("gpt2", "v1.0", "")),
        ("hf://models/acme/model@feature%2Fx/a/b", HubAddress("acme/model", "feature/x", "a/b/")),
        ("hf://acme/model/", HubAddress("acme/model", "main", "")),
        ("hf://gpt2/", HubAddress("gpt2", "main", "")),
        ("hf://acme/model/onnx", HubAddress("acme/model", "main", "onnx/")),
        ("hf://acme/model/onnx/fp16/", HubAddress("acme/model", "main", "onnx/fp16/")),
        ("hf://acme/model/step@100/", HubAddress("acme/model", "main", "step@100/")),
        ("hf://acme/model@main/step@100", HubAddress("acme/model", "main", "step@100/")),
        ("hf://acme/models", HubAddress("acme/models", "main", "")),
        ("hf://gpt2@v1.0", HubAddress("gpt2", "v1.0", "")),
        ("HF://acme/Model-3.1_8B@0e9e39f249a1", HubAddress("acme/Model-3.1_8B", "0e9e39f249a1", "")),
        (f"hf://acme/model@{COMMIT}/", HubAddress("acme/model", COMMIT, "")),
        ("hf://acme/model@main/onnx/fp16/", HubAddress("acme/model", "main", "onnx/fp16/")),
        ("hf://acme/model@main/onnx", HubAddress("acme/model", "main", "onnx/")),
        ("hf://acme/model@refs/pr/12/onnx", HubAddress("acme/model", "refs/pr/12", "onnx/")),
        ("hf://acme/model@feature%2Fx/onnx", HubAddress("acme/model", "feature/x", "onnx/")),
    ],
)
def test_a_legal_address_is_read(uri: str, expected: HubAddress) -> None:
    """An address has one reading, and what is shown of it reads back as the same."""
    address = HubAddress.parse(uri)
    assert address == expected
    assert HubAddress.parse(str(address)) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "acme/model",
        "https://huggingface.co/acme/model",
        "hf://",
        "hf:///model",
        "hf://models",
        "hf://models/",
        "hf://models/acme/model@",
        "hf://model/acme/model",
        "hf://acme//model",
        "hf://acme/model//",
        "hf://acme/model//onnx",
        "hf://acme/model/../other",
        "hf://acme/model@",
        "hf://acme/-model",
        "hf://acme/mo--del",
        "hf://acme/model.git",
        "hf://datasets/acme@main",
        "hf://acme/model@a b",
        "hf://acme/model@a\nb",
        "hf://acme/model@..",
        "hf://acme/model@a..b",
        "hf://acme/model@a%2F",
        "hf://acme/model@a%2F..%2Fb",
        "hf://acme/model@main?x=1",
        "hf://acme/model@main#x",
        "hf://acme/model@main/../other",
        "hf://acme/model@main//onnx",
        "hf://acme/model@main/onnx//",
        "hf://acme/model@main/a\\b",
        "hf://" + "a" * 97,
    ],
)
def test_a_malformed_address_is_refused(uri: str) -> None:
    """What is malformed is refused with a remedy, before anything is asked."""
    with pytest.raises(Permanent) as caught:
        HubAddress.parse(uri)
    assert caught.value.code == "invalid_source"
    assert "hf://org/repo@revision" in caught.value.remedy or "models" in caught.value.remedy


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("hf://datasets/acme/data@main", "a dataset"),
        ("hf://datasets/acme", "a dataset"),
        ("hf://spaces/acme/app", "a Space"),
        ("hf://buckets/acme/b/c", "a bucket"),
        ("hf://kernels/acme/k", "a kernel"),
        ("hf://datasets", "a dataset"),
    ],
)
def test_what_is_no_model_is_refused_by_name(uri: str, found: str) -> None:
    """Another kind of repository is told by its name, with what is expected instead."""
    with pytest.raises(Permanent) as caught:
        HubAddress.parse(uri)
    assert caught.value.code == "invalid_source"
    assert f"expected a model repository, found {found}" in caught.value.message
    assert "hf://org/repo@revision" in caught.value.remedy


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT, "feature/x", "refs/pr/3"])
@pytest.mark.parametrize("path", ["", "onnx", "onnx/fp16"])
def test_what_huggingface_hub_writes_is_read_as_it_reads_it(revision: str | None, path: str) -> None:
    """`HfUri.to_uri()` and our own form name the same repository, revision and folder for both."""
    written = HfUri(type="model", id="acme/model", revision=revision, path_in_repo=path)
    address = HubAddress.parse(written.to_uri())
    assert address == HubAddress("acme/model", revision or "main", f"{path}/" if path else "")
    back = parse_hf_uri(str(address))
    assert (back.id, back.revision, back.path_in_repo.rstrip("/")) == ("acme/model", revision or "main", path)


def test_credentials_in_an_address_are_not_repeated() -> None:
    """A token in an address is refused and shown nowhere."""
    with pytest.raises(Permanent) as caught:
        HubAddress.parse("hf://user:hf_secret@acme/model")
    assert "hf_secret" not in str(caught.value)
    assert "HF_TOKEN" in caught.value.remedy


@pytest.mark.parametrize("uri", ["hf://{}@acme/model", "hf://acme/{}", "hf://acme/model@{}"])
def test_a_token_in_place_of_a_name_is_not_repeated(uri: str) -> None:
    """A token of the Hub has a form of its own: it is told where it belongs, and not shown."""
    token = "hf_" + "Ab1" * 11
    with pytest.raises(Permanent, match="HF_TOKEN") as caught:
        HubAddress.parse(uri.format(token))
    assert token not in str(caught.value)

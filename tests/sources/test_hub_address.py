"""`hf://` addresses: one way to read each, and nothing malformed."""

from __future__ import annotations

import pytest

from cached.contract.errors import Permanent
from cached.sources.hub_address import HubAddress

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://acme/model", HubAddress("acme/model", "main", "")),
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
        "hf://acme/",
        "hf://acme/model@",
        "hf://acme/model/onnx",
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


def test_credentials_in_an_address_are_not_repeated() -> None:
    """A token in an address is refused and shown nowhere."""
    with pytest.raises(Permanent) as caught:
        HubAddress.parse("hf://user:hf_secret@acme/model")
    assert "hf_secret" not in str(caught.value)
    assert "HF_TOKEN" in caught.value.remedy

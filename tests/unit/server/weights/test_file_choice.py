"""Which files of a folder every function reads, and from which of them a tensor comes: as transformers chooses."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.distributed.checkpoint import is_sharded_checkpoint

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.loadable.findings import Finding, is_loadable
from cached.contract.loadable.verdict import find_name_problems, find_problems
from server import iter_tensors, load_file, load_model, load_pretrained
from server.weights.format.listing import list_shards
from tests.support.checkpoints import same
from tests.support.folders import (
    EQUAL,
    INDEX,
    REFUSED,
    SHARDS,
    Case,
    State,
    build_model,
    make,
    set_field,
    write_index,
    write_shards,
)

LLAMA: Any = transformers.LlamaForCausalLM


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that transformers opens."""
    found: list[str] = []
    theirs: Any = transformers.modeling_utils
    reference = theirs.safe_open

    def recorded(path: str, **options: Any) -> Any:
        found.append(os.path.realpath(path))
        return reference(path, **options)

    monkeypatch.setattr(theirs, "safe_open", recorded)
    return found


@pytest.mark.parametrize("case", EQUAL)
def test_every_door_chooses_as_transformers_does(case: str, tmp_path: Path, opened: list[str]) -> None:
    """Files, tensors, missing and unexpected keys are those of `from_pretrained`, tensor by tensor."""
    folder = tmp_path / "model"
    make(EQUAL[case], folder)
    module, info = LLAMA.from_pretrained(folder, output_loading_info=True)
    expected: State = module.state_dict()
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    good = build_model(1).state_dict()
    assert all(same(expected[name], good[name]) for name in expected.keys() - missing)  # the case is what it says

    assert {os.path.realpath(path) for path in list_shards(folder).paths} == set(opened)
    for found in (load_file(folder), dict(iter_tensors(folder)), load_file(folder, backend="pread")):
        assert found.keys() == (expected.keys() - missing) | unexpected
        assert all(same(found[name], expected[name]) for name in expected.keys() - missing)
    ours, told = load_pretrained(LLAMA, folder, output_loading_info=True)
    assert (set(told["missing_keys"]), set(told["unexpected_keys"])) == (missing, unexpected)
    assert all(same(ours.state_dict()[name], expected[name]) for name in expected.keys() - missing)
    with torch.device("meta"):
        bare = build_model(3)
    result = load_model(bare, folder, strict=False)
    assert (set(result.missing_keys), set(result.unexpected_keys)) == (missing, unexpected)
    assert all(same(bare.state_dict()[name], expected[name]) for name in expected.keys() - missing)


@pytest.mark.parametrize("case", REFUSED)
def test_what_transformers_cannot_read_is_refused(case: str, tmp_path: Path) -> None:
    """Where `from_pretrained` fails every function refuses, with an error that says what was found and what to do."""
    folder = tmp_path / "model"
    make(REFUSED[case], folder)
    with pytest.raises(Exception):  # noqa: B017 - its errors are of any kind
        LLAMA.from_pretrained(folder)
    for read in (load_file, lambda found: dict(iter_tensors(found)), lambda found: load_model(build_model(3), found)):
        with pytest.raises(Permanent) as caught:
            read(folder)
        assert caught.value.remedy
        assert str(folder) in caught.value.message
    with pytest.raises(HoldfastError):
        load_pretrained(LLAMA, folder)


@pytest.fixture
def states() -> tuple[State, State]:
    """Weights, and others under the same names."""
    good, stale = ({n: t.clone() for n, t in build_model(seed).state_dict().items()} for seed in (1, 2))
    return good, stale


def theirs_of(folder: Path) -> tuple[State, set[str]]:
    """What transformers reads of a folder, and the keys that it misses."""
    build_model(1).config.save_pretrained(folder)
    module, info = LLAMA.from_pretrained(folder, output_loading_info=True)
    return module.state_dict(), set(info["missing_keys"])


def test_the_index_decides_between_two_files(
    states: tuple[State, State], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tensor comes from the file that the index names, and what it leaves out is told; transformers takes it from the
    file that sorts last."""
    good, stale = states
    write_shards(tmp_path, good, "a.safetensors")
    save_file({"model.norm.weight": stale["model.norm.weight"], "over": torch.ones(3)}, tmp_path / "b.safetensors")
    write_index(tmp_path / INDEX, dict.fromkeys(good, "a.safetensors") | {"over": "b.safetensors"})
    with caplog.at_level(logging.WARNING):
        found = load_file(tmp_path)
    assert same(found["model.norm.weight"], good["model.norm.weight"])
    assert "left out" in caplog.text and "model.norm.weight" in caplog.text
    assert same(theirs_of(tmp_path)[0]["model.norm.weight"], stale["model.norm.weight"])


def test_a_tensor_that_the_index_does_not_name_is_not_handed_out(states: tuple[State, State], tmp_path: Path) -> None:
    """The index is an allow-list: of its own files too nothing else is read; transformers hands out what is there."""
    good, _ = states
    weight_map = write_shards(tmp_path, good, *SHARDS)
    del weight_map["model.norm.weight"]
    write_index(tmp_path / INDEX, weight_map)
    assert load_file(tmp_path).keys() == dict(iter_tensors(tmp_path)).keys() == good.keys() - {"model.norm.weight"}
    with pytest.raises(Permanent, match=r"model\.norm\.weight"):
        load_file(tmp_path, keys=["model.norm.weight"])
    assert theirs_of(tmp_path)[1] == set()


def test_an_index_without_metadata_is_read(states: tuple[State, State], tmp_path: Path) -> None:
    """Nothing of the index but its map is needed; transformers fails without `metadata`."""
    good, _ = states
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": write_shards(tmp_path, good, *SHARDS)}))
    assert load_file(tmp_path).keys() == good.keys()
    with pytest.raises(KeyError, match="metadata"):
        theirs_of(tmp_path)


@pytest.mark.parametrize("gone", ["../a.safetensors", "/etc/a.safetensors", "a/../../a.safetensors", "", ".", "a\0b"])
def test_an_index_that_leads_out_of_the_folder_is_refused(gone: str, tmp_path: Path) -> None:
    """No index has a file read that is not below the model's folder."""
    write_index(tmp_path / INDEX, {"x": gone})
    with pytest.raises(Permanent, match="same folder"):
        load_file(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        ({"x": "a.safetensors", "nope": "a.safetensors"}, r"'nope' should be in a\.safetensors, found in no file"),
        ({"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}, r"'y' should .*, found in b\.safetensors"),
    ],
)
def test_an_index_that_disagrees_with_its_files_is_refused(
    weight_map: dict[str, str], told: str, tmp_path: Path
) -> None:
    """A tensor that is not where the index has it, which a mixture of two versions gives, is refused by name;
    transformers takes it from elsewhere, or leaves its weight as it was made."""
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"y": torch.ones(2), "z": torch.ones(2)}, tmp_path / "b.safetensors")
    write_index(tmp_path / INDEX, weight_map)
    with pytest.raises(Permanent, match=told):
        load_file(tmp_path)
    theirs_of(tmp_path)


def test_a_complete_set_needs_no_index(states: tuple[State, State], tmp_path: Path) -> None:
    """All shards of a set load without an index, whatever lies beside them; a tensor that two of them have does not."""
    good, stale = states
    write_shards(tmp_path, good, *SHARDS)
    write_shards(tmp_path, stale, "._model-00001-of-00002.safetensors", "extra.safetensors")
    found = load_file(tmp_path)
    assert found.keys() == good.keys()
    assert all(same(found[name], tensor) for name, tensor in good.items())
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        theirs_of(tmp_path)
    save_file(good, tmp_path / SHARDS[1])
    with pytest.raises(Permanent, match="is also in model-00001-of-00002") as caught:
        load_file(tmp_path)
    assert INDEX in caught.value.remedy


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (SHARDS[:1], r"expected 2 shards, found 1, without model-00002-of-00002\.safetensors"),
        ((SHARDS[0], "model-00001-of-00003.safetensors"), "found several: 1 files …-of-00002, 1 files …-of-00003"),
        ((*SHARDS, "model-00003-of-00002.safetensors"), "expected 2 shards, found 3"),
    ],
)
def test_a_part_of_a_set_is_refused(names: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """Shards that are missing are named; of two sets neither is chosen."""
    write_shards(tmp_path, build_model(1).state_dict(), *names)
    with pytest.raises(Permanent, match=told):
        load_file(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("weights.safetensors", "a name that is not looked for", "`transformers_weights: 'weights.safetensors'`"),
        ("model.fp16.safetensors", "a variant", "rename it to model.safetensors"),
        ("adapter_model.safetensors", "an adapter", "beside its base model"),
        ("._model.safetensors", "a name with a dot first", "the model's own files"),
        ("unet/model.safetensors", "in a subfolder", "load "),
        ("pytorch_model.bin", "a pickle", "save_pretrained"),
        ("model-q4.gguf", "another format", "save_pretrained"),
        ("model.safetensors.fp16.safetensors.index.json", "an index whose name", "rename it"),
    ],
)
def test_a_file_that_is_not_taken_is_named_with_the_reason(name: str, reason: str, remedy: str, tmp_path: Path) -> None:
    """A folder of other names says which file is not read, why, and what to do with that file."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "README.md").touch()
    with pytest.raises(Permanent) as caught:
        load_file(tmp_path)
    assert f"{name} ({reason}" in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.code == "no_weights"
    assert "README" not in str(caught.value)


@pytest.mark.parametrize("other", [None, "model.safetensors", "named.safetensors"])
def test_a_distributed_checkpoint_is_refused(other: str | None, states: tuple[State, State], tmp_path: Path) -> None:
    """Parts that ranks wrote (torch's `HuggingFaceStorageWriter`) are no whole weights, and beside others transformers
    joins both sets: every function refuses the folder by the parts' names, and a note tells it before."""
    good, stale = states
    part = "shard-00001-model-00001-of-00001.safetensors"

    def case(folder: Path, *_: State) -> None:
        if other is not None:
            save_file(good, folder / other)
            set_field(folder, other)
        save_file(stale, folder / part)

    folder = tmp_path / "model"
    findings = judge(case, folder, architectures=["LlamaForCausalLM"])
    assert [(one.code, one.path) for one in findings] == [("distributed", part)]
    assert is_sharded_checkpoint(folder)
    for read in (load_file, lambda found: load_pretrained(LLAMA, found), list_shards):
        with pytest.raises(Permanent) as caught:
            read(folder)
        assert part in caught.value.message
        assert "save_pretrained" in caught.value.remedy


def test_an_override_of_the_named_file_is_heeded(states: tuple[State, State], tmp_path: Path) -> None:
    """`load_pretrained(…, transformers_weights=…)` reads the file that it names, as `from_pretrained` does."""
    _, stale = states
    folder = tmp_path / "model"
    make(EQUAL["a_file_that_the_configuration_names"], folder)
    write_shards(folder, stale, "third.safetensors")
    ours = load_pretrained(LLAMA, folder, transformers_weights="third.safetensors")
    theirs = LLAMA.from_pretrained(folder, transformers_weights="third.safetensors")
    for name, tensor in theirs.state_dict().items():
        assert same(ours.state_dict()[name], tensor) and same(tensor, stale[name])


@pytest.mark.parametrize(
    ("content", "kind", "remedy"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
            "stands for a file of 123",
            "lfs pull",
        ),
        (b"../.git/annex/objects/XX/YY/SHA256E-s5--aa\n", "git-annex pointer", "git annex get"),
        (b"\n <HTML><body>Please sign in</body></HTML>", "HTML", "credentials"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", "credentials"),
        (b"<script>location='/login'</script>", "web page (HTML)", "credentials"),
        ("\ufeff<html><body>Anmelden".encode("utf-16"), "web page (HTML)", "credentials"),
        (b"<!-- " + b"x" * 1500 + b" --><html>", "web page (HTML)", "credentials"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "NoSuchKey", "credentials"),
        (b"<svg></svg>", "markup", "credentials"),
        (b'{"error": "Invalid username or password."}', "JSON", "credentials"),
        (b"PK\3\4" + bytes(200), "zip", "save_pretrained"),
        (b"\x80\2}q\0X\5\0\0\0model" + bytes(200), "pickle", "save_pretrained"),
        (b"GGUF\3\0\0\0" + bytes(200), "GGUF", "save_pretrained"),
        (bytes(4096), "zero bytes", "download"),
        (b"", "file of 0 bytes", "cut short"),
        (b"\x10\0\0\0\0\0\0\0{}", "header says it is 16 bytes long", "cut short"),
    ],
)
def test_what_lies_in_place_of_weights_is_told(content: bytes, kind: str, remedy: str, tmp_path: Path) -> None:
    """A pointer, a page, another format or half a file is named with its file, what it is, and the remedy."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(Permanent) as caught:
            load_file(source)
        assert str(path) in caught.value.message
        assert kind in caught.value.message
        assert remedy in caught.value.remedy
        assert caught.value.code == "invalid_weights"


def test_half_an_index_is_no_page(tmp_path: Path) -> None:
    """An index that is cut short is told as such, and not as another kind of file."""
    (tmp_path / INDEX).write_text('{"metadata": {}, "weight_map": {"model.norm')
    with pytest.raises(Permanent, match="not JSON in UTF-8: Unterminated string") as caught:
        load_file(tmp_path)
    assert "download this file again" in caught.value.remedy


@pytest.mark.parametrize("where", [INDEX, "config.json"])
def test_a_pointer_in_place_of_an_index_is_told(where: str, tmp_path: Path) -> None:
    """The files that say where the weights are get the same words."""
    (tmp_path / where).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(Permanent, match=f"{where}: .*Git LFS pointer"):
        load_file(tmp_path)


def test_a_config_without_the_field_changes_nothing(tmp_path: Path) -> None:
    """Other fields of config.json are none of the loader's."""
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "?", "text_config": {"transformers_weights": "y"}}))
    assert [name for name, _ in iter_tensors(tmp_path)] == ["x"]


# Names that vLLM reads, of which a note tells; and a folder that names no class, which may be no model at all.
NOTED = {"a_variant_alone", "an_unusual_name_alone"}
NOT_JUDGED = {"a_dot_file_alone", "nothing"}


@pytest.mark.parametrize("case", [*EQUAL, *sorted(REFUSED.keys() - NOTED - NOT_JUDGED)])
def test_the_verdict_before_a_load_is_the_loads(case: str, tmp_path: Path) -> None:
    """What the daemon and `publish` say of a folder agrees with the loaders: one that loads is loadable."""
    findings = judge((EQUAL | REFUSED)[case], tmp_path / "model")
    assert is_loadable(findings) == (case in EQUAL), findings


@pytest.mark.parametrize("case", sorted(NOTED))
def test_a_name_that_one_engine_alone_looks_for_is_noted(case: str, tmp_path: Path) -> None:
    """Weights under another name load in vLLM: they are no error, and a note names them and the remedy."""
    findings = judge(REFUSED[case], tmp_path / "model", architectures=["LlamaForCausalLM"])
    assert [(one.code, one.fatal) for one in findings] == [("other_names", False)]
    assert "transformers_weights" in findings[0].remedy


@pytest.mark.parametrize("case", sorted(NOT_JUDGED))
def test_a_class_without_weights_is_not_loadable(case: str, tmp_path: Path) -> None:
    """Where config.json names a class, dot files count as no weights, as for the loaders."""
    findings = judge(REFUSED[case], tmp_path / "model", architectures=["LlamaForCausalLM"])
    assert [one.code for one in findings if one.fatal] == ["no_weights"]


def judge(case: Case, made: Path, **config: Any) -> tuple[Finding, ...]:
    """The findings about a case's folder, with a tokenizer and these fields in config.json."""
    make(case, made)
    (made / "tokenizer.json").write_text("{}")
    if config:
        said = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps({**said, **config}))
    sizes = {str(path.relative_to(made)): path.stat().st_size for path in made.rglob("*") if path.is_file()}

    def read(path: str, offset: int, length: int) -> bytes:
        return (made / path).read_bytes()[offset : offset + length]

    return (*find_problems(sizes, read), *find_name_problems(sizes))

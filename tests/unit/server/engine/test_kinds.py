"""What a folder is served as, and what it is refused for, before its weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from cached.contract.errors import Permanent
from server.engine.heads import find_head
from server.engine.kinds import read_kind
from server.engine.model_files import load_causal_lm, positions
from server.engine.types import ModelKind
from tests.support.folders import LFS
from tests.support.serving import failing
from tests.support.tiny_models import build, small_config
from tests.unit.server.conftest import save_tokenizer


def folder(directory: Path, config: Any, **files: Any) -> Path:
    """A folder of JSON files alone: `__` in a name is a slash, and `.json` is added."""
    for name, content in {"config": config, **files}.items():
        path = directory / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return directory


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
CROSS = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
QWEN = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
RERANKER = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}


@pytest.mark.parametrize(
    ("config", "files", "kind"),
    [
        (QWEN, {}, ModelKind.COMPLETIONS),
        (QWEN, {"modules": MODULES}, ModelKind.EMBEDDINGS),
        (QWEN, {"1_Pooling__config": {"pooling_mode": "lasttoken"}}, ModelKind.EMBEDDINGS),
        ({"architectures": ["BertModel"], "model_type": "bert"}, {}, ModelKind.EMBEDDINGS),
        (
            {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta"},
            {"modules": MODULES},
            ModelKind.EMBEDDINGS,
        ),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5"}, {"modules": MODULES}, ModelKind.EMBEDDINGS),
        (RERANKER, {}, ModelKind.CLASSIFICATION),
        (
            RERANKER,
            {"modules": CROSS, "config_sentence_transformers": {"model_type": "CrossEncoder"}},
            ModelKind.CLASSIFICATION,
        ),
    ],
)
def test_the_head_and_the_modules_decide_the_kind(
    tmp_path: Path, config: Any, files: dict[str, Any], kind: ModelKind
) -> None:
    """A class of the allow-list, or the modules of sentence-transformers around it, say what a model computes."""
    assert read_kind(folder(tmp_path, config, **files)).kind is kind


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tokens": ({"architectures": ["BertForTokenClassification"], "model_type": "bert"}, {}, "labels single tokens"),
    "answers": ({"architectures": ["RobertaForQuestionAnswering"], "model_type": "roberta"}, {}, "marks answers"),
    "masks": ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, {}, "fills in masked tokens"),
    "pretraining": ({"architectures": ["BertForPreTraining"], "model_type": "bert"}, {}, "fills in masked tokens"),
    "choices": ({"architectures": ["BertForMultipleChoice"], "model_type": "bert"}, {}, "chooses between answers"),
    "clip": ({"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": {}}, {}, "reads images"),
    "vit": ({"architectures": ["ViTForImageClassification"], "model_type": "vit", "image_size": 224}, {}, "images"),
    "vit, bare": ({"architectures": ["ViTModel"], "model_type": "vit", "image_size": 224}, {}, "images"),
    "multimodal": (
        {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "vision_config": {}},
        {},
        "reads images",
    ),
    "the text part of a multimodal": (
        {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3", "vision_config": {}},
        {},
        "Gemma3ForCausalLM, which reads images",
    ),
    "multimodal without a class": ({"model_type": "llava", "vision_config": {}}, {}, "model type llava, which reads"),
    "audio": ({"architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2"}, {}, "reads audio"),
    "speech": (
        {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "is_encoder_decoder": True},
        {},
        "encoder-decoder",
    ),
    "t5": (
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
        {},
        "encoder-decoder",
    ),
    "t5, bare": ({"architectures": ["T5Model"], "model_type": "t5", "is_encoder_decoder": True}, {}, "encoder-decoder"),
    "bart, classifying": (
        {"architectures": ["BartForSequenceClassification"], "model_type": "bart"},
        {},
        "is not compared with its library",
    ),
    "own code": (
        {"architectures": ["EvilForEvil"], "model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}},
        {},
        "never run",
    ),
    "two heads": ({"architectures": ["GPT2DoubleHeadsModel"], "model_type": "gpt2"}, {}, "GPT2DoubleHeadsModel"),
    "bidirectional": ({"architectures": ["BertLMHeadModel"], "model_type": "bert"}, {}, "BertLMHeadModel"),
    "clip that embeds": ({"architectures": ["CLIPModel"], "model_type": "clip"}, {"modules": MODULES}, "CLIPModel"),
    "sparse": (
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"modules": MODULES, "config_sentence_transformers": {"model_type": "SparseEncoder"}},
        "found SparseEncoder",
    ),
    "late interaction": (
        {"architectures": ["BertModel"], "model_type": "bert"},
        {"modules": MODULES, "config_sentence_transformers": {"model_type": "MultiVectorEncoder"}},
        "found MultiVectorEncoder",
    ),
    "generating reranker": (
        QWEN,
        {
            "modules": [*CROSS, {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "x.LogitScore"}],
            "config_sentence_transformers": {"model_type": "CrossEncoder"},
        },
        "LogitScore",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    """The class, what it is for and what to use instead are told; nothing is served as something else."""
    config, files, told = REFUSED[name]
    with pytest.raises(Permanent, match=told) as caught:
        read_kind(folder(tmp_path, config, **files))
    assert caught.value.code == "unsupported_model"
    assert "--app" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("vocab.txt", LFS.decode(), "lfs_pointer"),
        ("chat_template.jinja", LFS.decode(), "lfs_pointer"),
        ("additional_chat_templates/tools.jinja", LFS.decode(), "lfs_pointer"),
        ("tokenizer.json", "<html>Sign in", "web_page"),
        ("config.json", LFS.decode(), "lfs_pointer"),
        ("1_Pooling/config.json", "<!DOCTYPE html>", "web_page"),
        ("0_Transformer/vocab.txt", "../../.git/annex/objects/a/b", "lfs_pointer"),
    ],
)
def test_what_stands_for_a_file_is_refused_before_it_is_read(
    tmp_path: Path, name: str, content: str, code: str
) -> None:
    """A pointer is a vocabulary of three words, or a chat template without messages, to the libraries: it is named with
    its file and the remedy, as a page is."""
    directory = folder(tmp_path, QWEN)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(content)
    with pytest.raises(Permanent) as caught:
        read_kind(directory)
    assert caught.value.code == code
    assert str(directory / name) in caught.value.message
    assert "publish it again" in caught.value.remedy


def test_a_pointer_that_is_not_read_here_is_left_alone(tmp_path: Path) -> None:
    """Files of other engines, and those without a role, decide nothing."""
    directory = folder(tmp_path, QWEN)
    (directory / "onnx").mkdir()
    for name in ("onnx/tokenizer.json", "model.onnx", "README.md"):
        (directory / name).write_bytes(LFS)
    assert read_kind(directory).kind is ModelKind.COMPLETIONS


MISSHAPEN: dict[str, tuple[Any, ...]] = {
    "config": (None, 3, "x", []),
    "modules": (None, 3, "x", ["x"], [{"type": "a.Transformer", "path": 5}]),
    "config_sentence_transformers": (None, 3, "x", []),
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, content) for file, contents in MISSHAPEN.items() for content in contents]
)
def test_a_file_of_another_shape_is_named(tmp_path: Path, file: str, content: Any) -> None:
    """JSON that is no configuration, or names no folder, is refused with its file, and not with a traceback."""
    files = {"config": QWEN, "modules": MODULES, "config_sentence_transformers": {}, file: content}
    with pytest.raises(Permanent, match=file) as caught:
        read_kind(folder(tmp_path, files.pop("config"), **files))
    assert caught.value.code in ("invalid_config", "unsupported_model")


@pytest.mark.parametrize("name", ["tokens", "clip", "t5"])
def test_a_refusal_comes_before_torch_and_the_weights(tmp_path: Path, name: str) -> None:
    """The process ends with the reason alone: no traceback, no word of memory, and before it looks for weights, of
    which this folder has none."""
    config, files, told = REFUSED[name]
    done = failing("--model-path", str(folder(tmp_path, config, **files)))
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "memory" not in done.stderr
    assert "safetensors" not in done.stderr


@pytest.mark.parametrize("field", ["max_position_embeddings", "n_positions"])
@pytest.mark.parametrize("value", [0, -2, "many"])
def test_a_context_below_one_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    """A model without a single position is refused by the field that says so."""
    with pytest.raises(Permanent, match=f"expected {field} of at least 1, found {value!r}") as caught:
        read_kind(folder(tmp_path, {**QWEN, field: value}))
    assert caught.value.code == "invalid_config"


def test_a_tokenizer_without_a_context_is_refused_before_the_weights(tmp_path: Path) -> None:
    """The tokenizer's limit counts too; the folder has no weights, which is not what is told."""
    small_config("llama", architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**said, "model_max_length": 0}))
    with pytest.raises(Permanent, match=r"at least one token, found 0 by model_max_length of tokenizer_config\.json"):
        load_causal_lm(tmp_path, "cpu", "auto")


def test_positions_that_padding_takes_leave_no_context(tmp_path: Path) -> None:
    """RoBERTa's positions begin after its padding's: two of them are none."""
    assert positions(small_config("roberta", max_position_embeddings=514, pad_token_id=1)) == 512
    assert positions(small_config("roberta", max_position_embeddings=2, pad_token_id=1)) == 0
    assert positions(small_config("xlnet")) is None


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("LlamaForCausalLM", ModelKind.COMPLETIONS),
        ("LlamaModel", ModelKind.EMBEDDINGS),
        ("LlamaForSequenceClassification", ModelKind.CLASSIFICATION),
        ("BertModel", ModelKind.EMBEDDINGS),
        ("BertForSequenceClassification", ModelKind.CLASSIFICATION),
        ("BertForTokenClassification", None),
        ("BertForQuestionAnswering", None),
        ("BertForMaskedLM", None),
        ("ViTModel", None),
    ],
)
def test_the_tensors_decide_where_no_architecture_is_named(
    tmp_path: Path, architecture: str, kind: ModelKind | None
) -> None:
    """Without `architectures` the model type's classes are compared with the names in the files; a head that is not
    served is refused as if it were named."""
    overrides: dict[str, Any] = {"pad_token_id": 0} if architecture != "ViTModel" else {}
    build(architecture, tmp_path, **overrides)
    said = json.loads((tmp_path / "config.json").read_text())
    del said["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    if kind is not None:
        found = find_head(tmp_path, read_kind(tmp_path))
        assert (found.kind, found.architecture) == (kind, architecture)
        return
    with pytest.raises(Permanent) as caught:
        find_head(tmp_path, read_kind(tmp_path))
    assert caught.value.code == "unsupported_model"


def test_an_architecture_of_another_model_type_is_refused(tmp_path: Path) -> None:
    """transformers goes by the model type; where the named class is another, one of the two is wrong."""
    build("BertModel", tmp_path, pad_token_id=0)
    save_tokenizer(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(Permanent, match="expected LlamaForCausalLM, found the model type bert") as caught:
        load_causal_lm(tmp_path, "cpu", "auto")
    assert caught.value.code == "unsupported_model"


def test_the_allow_list_names_classes_that_transformers_has() -> None:
    """A name of the allow-list is a class, or a model type, of the transformers that is installed."""
    from server.engine import architectures

    assert [
        name
        for name in (*architectures.GENERATORS, *architectures.CLASSIFIERS, *architectures.ENCODERS.values())
        if not hasattr(transformers, name)
    ] == []
    assert architectures.ENCODERS.keys() - set(transformers.CONFIG_MAPPING) == set()

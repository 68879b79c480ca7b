"""The import of the libraries for serving; each test in a process of its own, as it counts what is imported."""

from __future__ import annotations

import subprocess
import sys

from tests.support.serving import REPOSITORY

_BASE = """
import sys
from server.engine.libraries.imports import import_base
import_base()
import torch, transformers
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BASE + program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_base_leaves_out_what_no_served_model_runs() -> None:
    """The base of the models is there, and neither torch's compiler, nor sympy, nor scipy, nor the list of all models;
    each of transformers' names leads to the same object as ever, and its release is told."""
    run("""
unwanted = {"torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor", "sympy", "scipy"}
assert not unwanted & sys.modules.keys(), unwanted & sys.modules.keys()
assert "transformers.modeling_utils" in sys.modules
from transformers.models.bert.modeling_bert import BertModel
release = transformers.__version__
assert transformers.utils is sys.modules["transformers.utils"]
assert "BertModel" not in vars(transformers)
assert transformers.BertModel is BertModel  # reads the list
assert transformers.__version__ == sys.modules["transformers"].__version__ == release
assert transformers.models.bert.BertModel is BertModel
assert not unwanted & sys.modules.keys()
""")


def test_a_tokenizer_is_the_class_of_a_plain_import() -> None:
    """A tokenizer's class that is found without the list of all models is the one that the list leads to."""
    run("""
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from server.engine.libraries.imports import _home_of_tokenizer
names = sorted({name for name in TOKENIZER_MAPPING_NAMES.values() if name})
found = {name: getattr(transformers, name) for name in names if _home_of_tokenizer(name) is not None}
assert "_import_structure" not in vars(transformers)
transformers.AutoModel  # reads the list
current = sys.modules["transformers"]
assert len(found) > 20, found
assert "BertTokenizer" in found
kinds = {name: (one, getattr(current, name)) for name, one in found.items()}
different = [name for name, (one, other) in kinds.items() if one is not other]
# Each list makes stand-ins of its own for classes whose packages are missing here.
different = [name for name in different if any(type(one).__name__ != "DummyObject" for one in kinds[name])]
assert not different, different
""")


def test_the_compiler_works_when_it_is_asked_for() -> None:
    """torch.compile after the import for serving: torch's own decorators have taken effect on the libraries' code."""
    run("""
from transformers.integrations import deepgemm, eager_paged
compiled = torch.compile(lambda numbers: numbers + 1, backend="eager")
assert compiled(torch.zeros(1)).item() == 1
import torch._dynamo.utils
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert type(torch._dynamo) is type(sys)
assert deepgemm.is_sm100._dynamo_marked_constant
assert id(deepgemm._load_deepgemm_kernel) in torch._dynamo.trace_rules._allowed_callable_ids
""")

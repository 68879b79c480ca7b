"""Load models: each call takes long, imports torch, and runs in a thread of the caller's choice.

Law: every failure is a `HoldfastError`, as it must not end the models in service.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cached.contract.errors import HoldfastError, Permanent
from server.engine.types import Kind, Limits
from server.lifecycle.metrics import ModelMetrics
from server.lifecycle.snapshot import Snapshot

if TYPE_CHECKING:
    from server.engine.encoder import Encoder
    from server.engine.generation.generator import TextGenerator
    from server.engine.lora import Adapter
    from server.weights.report import LoadReport

_LOG = logging.getLogger(__name__)


def select_device(wanted: str) -> str:
    """Return the torch device to use; raises `Permanent` (`no_gpu`) where it is not available."""
    with _import_errors():
        from server.weights.cuda import device as gpu
    return gpu.select(wanted)


def select_device_for_user_code(wanted: str) -> str:
    """Select as for a model, but without torch `auto` is the CPU: user code may not need torch."""
    if wanted == "cpu":
        return "cpu"
    try:
        return select_device(wanted)
    except Permanent as error:
        if wanted != "auto" or error.code != "missing_package":
            raise
        _LOG.warning("torch is not installed: user code gets the device cpu")
        return "cpu"


def prepare(loaded: Callable[[LoadReport], None]) -> None:
    """Import the modules of a load; `loaded` receives the report of each later load."""
    with _import_errors():
        import server.engine.generation.generator  # noqa: F401 - the import itself takes seconds
        from server.weights import report
    report.subscribe(loaded)


def load(snapshot: Snapshot, device: str, dtype: str, limits: Limits, metrics: ModelMetrics) -> Encoder | TextGenerator:
    """Load a model; raises `HoldfastError`."""
    from server.engine.encoder import Encoder
    from server.engine.generation.generator import TextGenerator

    with _load_errors(snapshot), _without_garbage_collection():
        if _find_kind(snapshot.path) is Kind.COMPLETIONS:
            return TextGenerator.load(snapshot.path, device, dtype, limits, metrics)
        return Encoder.load(snapshot.path, device, dtype)


def _find_kind(directory: Path) -> Kind:
    """Return what the model in `directory` computes; raises `Permanent` (`invalid_config`). A folder with
    `modules.json` embeds: a sentence encoder made of a language model keeps that model's architecture."""
    path = directory / "config.json"
    if (directory / "modules.json").is_file():
        return Kind.EMBEDDINGS
    try:
        architectures = json.loads(path.read_bytes()).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise Permanent(
            "invalid_config",
            f"expected a JSON object in {path}: {error}",
            "publish the model's config.json with it, or serve the folder with --app",
        ) from error
    causal = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    return Kind.COMPLETIONS if causal else Kind.EMBEDDINGS


def warm_up(snapshot: Snapshot, model: Encoder | TextGenerator) -> None:
    """Run a model's first computation; raises `HoldfastError`."""
    with _load_errors(snapshot):
        model.warm_up()


def load_adapter(snapshot: Snapshot, base: Encoder | TextGenerator) -> Adapter:
    """Load an adapter for its base; raises `HoldfastError`."""
    from server.engine.generation.generator import TextGenerator

    if not isinstance(base, TextGenerator):
        raise Permanent(
            "adapter_base", f"{snapshot.path}: expected a base that generates text, found one that embeds", "merge it"
        )
    with _load_errors(snapshot):
        return base.load_adapter(snapshot.path)


def share_memory(models: list[Encoder | TextGenerator]) -> None:
    """Divide the memory for the KV caches between these models."""
    from server.engine.generation.generator import TextGenerator

    generators = [model for model in models if isinstance(model, TextGenerator)]
    for generator in generators:
        try:
            generator.share_memory(len(generators))
        except HoldfastError as error:
            _LOG.warning("a model keeps its KV cache limit: %s", error)


def clean_up() -> None:
    """Release the memory of models without references."""
    gc.unfreeze()
    gc.collect()  # an adapted module refers to itself
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection in the block, and exempt its objects for ever: libraries and models are a million
    objects that stay, and scanning them took a tenth of a start, and stops the batch later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _import_errors() -> Iterator[None]:
    try:
        with _without_garbage_collection():
            yield
    except ModuleNotFoundError as error:
        raise Permanent(
            "missing_package",
            f"the package {error.name} is missing",
            "pip install 'holdfast[transformers]', or serve your own code with --app",
        ) from error
    except (ImportError, OSError) as error:
        raise Permanent(
            "broken_package", f"a package cannot be imported: {error}", "reinstall torch and transformers"
        ) from error


@contextmanager
def _load_errors(snapshot: Snapshot) -> Iterator[None]:
    try:
        yield
    except HoldfastError:
        raise
    except Exception as error:
        _LOG.exception("%s cannot be loaded", snapshot.path)
        raise Permanent(
            "load_failed",
            f"{snapshot.path}: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            "see the traceback above; where memory is short, a version cannot be loaded beside the one it replaces",
        ) from error

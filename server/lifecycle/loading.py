"""Load models: each call takes long, imports torch, and runs in a thread of the caller's choice.

Law: every failure is a `HoldfastError`, as it must not end the models in service.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

from cached.contract.errors import HoldfastError, Permanent
from server.engine.kinds import read_kind
from server.engine.types import Limits, ModelKind
from server.lifecycle.metrics import ModelMetrics
from server.lifecycle.snapshot import Snapshot

if TYPE_CHECKING:
    from server.engine.classifier import Classifier
    from server.engine.encoder import Encoder
    from server.engine.generation.generator import TextGenerator
    from server.engine.lora import Adapter
    from server.weights.report import LoadReport

    Model = Encoder | Classifier | TextGenerator

_LOG = logging.getLogger(__name__)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # CUDA's and torch's own words


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
    """Import what every load needs; `loaded` receives the report of each later load."""
    with _import_errors():
        from server.engine.libraries.imports import import_base
        from server.weights import report

        import_base()
        import server.engine.model_files  # noqa: F401 - with the rest of what no kind of model can do without
    report.subscribe(loaded)


def load(snapshot: Snapshot, device: str, dtype: str, limits: Limits, metrics: ModelMetrics) -> Model:
    """Load a model; raises `HoldfastError`."""
    with _load_errors(snapshot), _without_garbage_collection():
        declared = read_kind(snapshot.path)
        if declared.kind is None:
            with _import_errors():
                from server.engine.heads import find_head
            declared = find_head(snapshot.path, declared)
        match declared.kind:  # a kind's modules are imported for the first model of it
            case ModelKind.COMPLETIONS:
                with _import_errors():
                    from server.engine.generation.generator import TextGenerator
                return TextGenerator.load(snapshot.path, device, dtype, limits, metrics, declared.architecture)
            case ModelKind.CLASSIFICATION:
                with _import_errors():
                    from server.engine.classifier import Classifier
                return Classifier.load(snapshot.path, declared, device, dtype)
        with _import_errors():
            from server.engine.encoder import Encoder
        return Encoder.load(snapshot.path, device, dtype)


def warm_up(snapshot: Snapshot, model: Model) -> None:
    """Run a model's first computation; raises `HoldfastError`."""
    with _load_errors(snapshot):
        model.warm_up()


def load_adapter(snapshot: Snapshot, base: Model) -> Adapter:
    """Load an adapter for its base; raises `HoldfastError`."""
    if not is_generator(base):
        found = f"a base that generates text, found one of kind {base.about.kind}"
        raise Permanent("adapter_base", f"{snapshot.path}: expected {found}", "merge it")
    with _load_errors(snapshot):
        return base.load_adapter(snapshot.path)


def is_encoder(model: Model) -> TypeGuard[Encoder]:
    """Tell by the model's own word: the class of a kind is imported for the first model of it."""
    return model.about.kind is ModelKind.EMBEDDINGS


def is_classifier(model: Model) -> TypeGuard[Classifier]:
    """Tell as `is_encoder` does."""
    return model.about.kind is ModelKind.CLASSIFICATION


def is_generator(model: Model) -> TypeGuard[TextGenerator]:
    """Tell as `is_encoder` does."""
    return model.about.kind is ModelKind.COMPLETIONS


def share_memory(models: list[Model]) -> None:
    """Divide the memory for the KV caches between these models."""
    generators = [model for model in models if is_generator(model)]
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
    enabled = gc.isenabled()  # not in such a block inside another
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
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
        remedy = "see the traceback above"
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            remedy = "give the pod more memory or a larger GPU: a version is loaded beside the one it replaces"
        raise Permanent(
            "load_failed", f"{snapshot.path}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", remedy
        ) from error

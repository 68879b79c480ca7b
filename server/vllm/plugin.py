"""The entry point `vllm.general_plugins`: registers `vllm serve PATH --load-format holdfast`.

Law: runs in each of vLLM's processes, perhaps more than once; costs a vLLM that does not use it an import only, and
never prevents its start.

Written against, and checked by reading, vLLM 0.11.2, 0.16.0, 0.22.1, 0.28.0 and 0.33.0; run against 0.33.0 on a CPU.
"""

from __future__ import annotations

import logging

LOAD_FORMAT = "holdfast"

_LOG = logging.getLogger("vllm.plugins.holdfast")  # vLLM shows the logs below its own name


def register() -> None:
    """Register the load format, unless it is registered."""
    try:
        from vllm.model_executor import model_loader
        from vllm.model_executor.model_loader import register_model_loader

        from server.vllm.loader import HoldfastModelLoader
    except ImportError as error:
        _LOG.warning("--load-format %s is not available in this vLLM: %s", LOAD_FORMAT, error)
        return
    # vLLM warns of a repeated registration, and keeps the formats in a private table.
    if getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {}).get(LOAD_FORMAT) is not HoldfastModelLoader:
        register_model_loader(LOAD_FORMAT)(HoldfastModelLoader)

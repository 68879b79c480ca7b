"""The entry point `vllm.general_plugins`: makes `vllm serve PATH --load-format holdfast` known to vLLM.

Law: called in each of vLLM's processes, and perhaps more than once; costs a vLLM that never uses it nothing but an
import, and never keeps it from starting.

Written against, and checked by reading, vLLM 0.11.2, 0.16.0, 0.22.1, 0.28.0 and 0.33.0; run against 0.33.0 on a CPU.
"""

from __future__ import annotations

import logging

LOAD_FORMAT = "holdfast"

_LOG = logging.getLogger("vllm.plugins.holdfast")  # vLLM shows what is logged below its own name


def register() -> None:
    """Register the load format, unless it is there already."""
    try:
        from vllm.model_executor import model_loader
        from vllm.model_executor.model_loader import register_model_loader

        from server.vllm.loader import HoldfastModelLoader
    except ImportError as error:
        _LOG.warning("--load-format %s is not available in this vLLM: %s", LOAD_FORMAT, error)
        return
    # vLLM warns of a format that is registered twice, and keeps them where only it looks.
    if getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {}).get(LOAD_FORMAT) is not HoldfastModelLoader:
        register_model_loader(LOAD_FORMAT)(HoldfastModelLoader)

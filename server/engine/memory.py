"""The free memory of a device, for the KV cache.

Law: reads counters, allocates nothing.
"""

from __future__ import annotations

import torch

from server.weights.host import memory


def free_bytes(device: str) -> int:
    """Return the free bytes of the GPU, or of the host within this container's limit."""
    if torch.device(device).type == "cuda":
        # Memory that torch has freed and kept counts as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return memory.free_bytes()

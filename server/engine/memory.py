"""How much memory is left on a device, for what a model keeps of the sequences it works on.

Law: looks, allocates nothing.
"""

from __future__ import annotations

import torch

from server.weights.host import memory


def free_bytes(device: str) -> int:
    """Bytes that can still be had: the GPU's free memory, or what the host and this container's limit have left."""
    if torch.device(device).type == "cuda":
        # What torch has kept of what it freed is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return memory.free_bytes()

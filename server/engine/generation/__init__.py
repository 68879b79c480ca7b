"""Text generation: the scheduler of a batch, prefill and decode steps, the KV cache, sampling."""

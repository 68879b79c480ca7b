"""Text generation: the batch scheduler, prefill and decode, the KV cache, sampling. Law: no HTTP, no disk."""

"""vLLM as far as another package's load format sees it, for machines that have no room for the real one.

Law: the names, signatures and attributes of vLLM 0.33.0's `vllm.plugins`, `vllm.config`, `vllm.platforms` and
`vllm.model_executor.model_loader`, read from its wheel; the bodies are ours and do no more than the tests need. The
same tests run against the real one where that can be imported.
"""

"""Environment variables."""

VLLM_PLUGINS: list[str] | None = None

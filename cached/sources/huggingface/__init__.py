"""The source `hf://`: a repository of a Hugging Face Hub, or of a mirror that speaks its API."""

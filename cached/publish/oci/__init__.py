"""Publishing to a registry of OCI artifacts."""

"""The content-addressed store: ingest, commit, snapshots, recovery. Law: synchronous, files only, no network."""

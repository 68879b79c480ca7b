"""Sentence embeddings as sentence-transformers defines them: its files, its modules, its prompts.

Law: every field of its files is honoured, refused by name, without effect, or told in a warning where the library
itself passes over it. Opens files of the model's folder only; runs no code of the model. `docs/models.md` has the table
of all fields and the version of the library that was read.
"""

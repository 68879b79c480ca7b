"""The server of Holdfast: maps a version's safetensors and answers inference requests.

Law: of ours it imports `cached.contract` only. torch and transformers are imported only when they are used, and
nothing here ever downloads or runs code that came with a model.
"""

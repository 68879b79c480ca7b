"""The resolver `wandb://`: artifacts of Weights & Biases.

Law: an artifact's manifest is read once; its own files come from the service, with their md5, and its references from
the stores that they name. No library of Weights & Biases is needed.
"""

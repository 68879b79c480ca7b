"""The source `hf://`: a repository of a Hugging Face Hub, or of a mirror that speaks its API.

Law: a listing is of one commit; the token goes to the Hub's own origin only. huggingface_hub finds the token and
interprets errors; the requests are ours.
"""

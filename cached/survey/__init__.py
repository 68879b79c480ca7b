"""`holdfast inspect URI`: what a source has, before anything is fetched.

Law: resolves and reports, with the credentials of its own environment; fetches no file and needs no daemon.
"""

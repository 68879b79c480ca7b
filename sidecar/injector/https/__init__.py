"""What the webhook is served with: its certificates, the Secret that keeps them, the TLS context that they change in.

Law: certificates are values; only the store asks the API server; a context takes a new certificate without a restart.
"""

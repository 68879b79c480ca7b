"""OpenAI's HTTP API over engines: routes, requests, responses, probes. Law: no torch; computes nothing."""

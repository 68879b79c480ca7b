"""OpenAI's HTTP API over engines: routes, requests, responses, probes."""

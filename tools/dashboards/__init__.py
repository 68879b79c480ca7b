"""The Grafana dashboards, as code: `fleet` for all nodes, `node` for one.

Law: queries name metrics of `cached.contract.metrics` and nothing that a recording rule makes, so that a dashboard
works without the rules. The JSON under `manifests/components/grafana` is what `make generated` makes of this.
"""

"""Which models are served, and how they come and go: discovery, loading, admission, health, readiness.

Law: knows engines by their interface and no HTTP routes.
"""

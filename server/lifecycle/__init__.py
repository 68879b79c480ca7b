"""The served models, from discovery through loading, admission and health checks to removal.

Law: uses engines by their interface (`server.engine.protocol`) and knows no HTTP routes.
"""

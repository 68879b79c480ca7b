"""The source `ms://`: a model repository of ModelScope, or of a site that speaks its API."""

"""What every test shares: one Hypothesis profile, without deadlines (a loaded machine is no failure)."""

from hypothesis import settings

settings.register_profile("holdfast", deadline=None, print_blob=True)
settings.load_profile("holdfast")

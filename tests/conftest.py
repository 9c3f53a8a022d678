"""Settings for every test."""

from hypothesis import settings

# A shared machine stalls now and then; a slow example says nothing about the code.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

"""What holds for all suites."""

from hypothesis import settings

# A machine that is busy is slow: how long an example takes says nothing.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")

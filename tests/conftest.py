"""Settings shared by all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Test machines are small and shared: hypothesis must not fail a property for being slow. On CI it draws the
# same examples each time: what a new one finds should stop the change that is worked on, and no other.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("default")

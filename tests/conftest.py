"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Test machines are small and shared: hypothesis must not fail a property for being slow.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

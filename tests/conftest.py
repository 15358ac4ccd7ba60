"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same cases every time: a failure in CI is one that anybody can repeat. No deadline: the machines are shared.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# For looking further: pytest --hypothesis-profile=search
settings.register_profile("search", parent=settings.get_profile("suite"), derandomize=False, max_examples=2_000)
settings.load_profile("suite")

# For the tests of the pytest plugin, which run pytest in pytest.
pytest_plugins = ["pytester"]

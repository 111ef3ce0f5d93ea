"""The scales at which a notebook runs, from CI to the paper's own."""

import os

VARIABLE = "REPLICATION_PROFILE"
PROFILES = ("smoke", "quick", "full", "paper")
EVIDENCE = ("full", "paper")  # what the scorecard shows once there is some of it


def resolve(profile: str) -> str:
    """Return the profile to run at: the environment's, or else the notebook's own, `profile`.

    One that is not in `PROFILES` is a ValueError.
    """
    value = os.environ.get(VARIABLE)
    name, value = (f"the variable {VARIABLE}", value) if value else ("profile", profile)
    if value not in PROFILES:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(PROFILES)}")
    return value

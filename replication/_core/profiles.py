"""The scales at which a notebook runs, from CI to the paper's own."""

import os

VARIABLE = "REPLICATION_PROFILE"
PROFILES = ("smoke", "quick", "full", "paper")
EVIDENCE = ("full", "paper")  # what the scorecard shows once there is some of it


def resolve(profile: str) -> str:
    """Return the profile to run at: the environment's, or else the notebook's own.

    The variable ``REPLICATION_PROFILE`` wins over `profile`, so that a committed notebook can be
    run at another scale without being edited.

    Parameters
    ----------
    profile : str
        One of ``smoke``, ``quick``, ``full``, ``paper``: the notebook's constant.

    Raises
    ------
    ValueError
        If the variable, or without it the argument, names no profile.
    """
    value = os.environ.get(VARIABLE)
    name, value = (f"the variable {VARIABLE}", value) if value else ("profile", profile)
    if value not in PROFILES:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(PROFILES)}")
    return value

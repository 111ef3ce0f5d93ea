"""Every test draws the same numbers whichever tests ran before it."""

import torch


def pytest_runtest_setup():  # before its fixtures, also those that several tests share
    torch.manual_seed(0)

"""What each notebook measures its paper's claims by: statistics and rules, fixed before the run.

A module a notebook: ``CLAIMS`` with their rules, and ``statistics``, from tidy tables to one number
a seed for each rule. No module here trains, measures or draws.
"""

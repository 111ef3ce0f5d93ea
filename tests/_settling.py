"""Claims with one made-up rule, and how the claims of a notebook are settled in its tests."""

from replication.claims import Claim, Rule, settle

WHERE = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}


def rule(direction=">", threshold=0.0, test="t", **more):
    return Rule("change of EV1", direction, threshold, test, **more)


def claim(*rules, id="B1", **more):
    return Claim(
        id, "Novak et al. 2018", "EV1 falls", rules if len(rules) > 1 else rules[0], **more
    )


def settle_all(claims, found):
    """Return the settled claims by id, from the statistics that a `rules` module found."""
    return {claim.id: settle(claim, found[claim.id], **WHERE) for claim in claims}

"""Claims N1 to N13 of Novak et al. 2018, and what settles each.

|J| is the Frobenius norm of the Jacobian of the softmax by the input, its mean over test points
where no point is named; the gap is train minus test accuracy, in shares; transitions are counted
exactly along the closed path through a test image's horizontal translations. A network has fitted
its labels at 100% train accuracy; others do not count, but for augmented ones in pairs.

All statistics and thresholds were fixed before the first run at quick or full. What someone may
doubt: the cross-entropy bounds, of which a first network was seen to hold only 30% of its points,
settle no claim here; the peak of |J_y| (N12) is looked for near p_y = 1/2 only, as most points lie
far from it. One thing was changed after a run at quick, which had too few pairs to settle any: the
networks of a pair are trained equally long, as in the paper, where before each stopped at 100%
train accuracy, and augmented ones trained several times longer than their partners.
"""

import math

import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _jacobian_vs_gap as own
from replication.papers._jacobian_vs_gap import (
    ACTIVATION,
    AUGMENTATION,
    BASE,
    CIFAR,
    DIFFERENT,
    FACTORS,
    FASHION,
    FULL_BATCH,
    INITIAL,
    LABELS,
    MNIST,
    NOISE,
    RANDOM,
    SAME,
    STAND_INS,
    TRAINED,
    TRUE,
    correlations,
    fitted,
    pairs,
)

__all__ = [
    "ACTIVATION",
    "AUGMENTATION",
    "BASE",
    "CIFAR",
    "CLAIMS",
    "DATASETS",
    "DIFFERENT",
    "FACTORS",
    "FASHION",
    "FULL_BATCH",
    "INITIAL",
    "LABELS",
    "MNIST",
    "NOISE",
    "RANDOM",
    "SAME",
    "TRAINED",
    "TRUE",
    "correlations",
    "fitted",
    "pairs",
    "statistics",
]

DATASETS = (MNIST, FASHION, CIFAR)
TITLES = {MNIST: "MNIST", FASHION: "Fashion-MNIST", CIFAR: "CIFAR-10"}
PAIRS = 20  # the fewest a factor
AT = f"within {own.WINDOW:g} degrees of the three points"
BETWEEN = f"within {own.WINDOW:g} degrees of the middles between them"


def _claim(number: int, statement: str, *rules: Rule, figure: str, shown: str) -> Claim:
    rule = rules[0] if len(rules) == 1 else rules
    return Claim(f"N{number}", "Novak et al. 2018", statement, rule, figure, shown)


def _dip(quantity: str) -> tuple[Rule, Rule]:
    return (
        Rule(
            f"ln of the mean {quantity} {AT} over that {BETWEEN}, training points of different "
            "classes",
            "<",
            0.0,
        ),
        Rule(
            f"coefficient of variation of {quantity} along ellipses through noise over that along "
            "those through training points of different classes",
            "<",
            0.5,
        ),
    )


def _same(quantity: str) -> Rule:
    return Rule(
        f"ln of the mean {quantity} {BETWEEN}, training points of the same class over those of "
        "different classes",
        "<",
        0.0,
    )


def _more(worse: str, better: str, quantity: str, which: str = "") -> Rule:
    statistic = f"{quantity} {worse} minus that {better}, a value a pair of networks{which}"
    return Rule(statistic, ">", 0.0, "sign", PAIRS)


def _raises(number: int, statement: str, worse: str, better: str, *more: Rule) -> Claim:
    two = (_more(worse, better, "gap"), _more(worse, better, "|J|"))
    return _claim(number, statement, *two, *more, figure="Fig. 4", shown="a plot, no number")


CLAIMS: tuple[Claim, ...] = (
    _claim(
        1,
        "|J| is lower at training points than between them, and flat along a random ellipse",
        *_dip("|J|"),
        figure="Fig. 2",
        shown="a plot, no number",
    ),
    _claim(
        2,
        "The density of transitions is lower at training points than between them, and flat along "
        "a random ellipse",
        *_dip("transition density"),
        figure="Fig. 2",
        shown="a plot, no number",
    ),
    _claim(
        3,
        "Between points, |J| and the density of transitions are lower for points of the same class",
        _same("|J|"),
        _same("transition density"),
        figure="Fig. 2",
        shown="a plot, no number",
    ),
    _raises(4, "Random labels raise the gap and |J|", "with random labels", "with true ones"),
    _raises(
        5,
        "Training without augmentation raises the gap and |J|",
        "without augmentation",
        "with it",
        _more(
            "without augmentation",
            "with it",
            "|J|",
            " of which augmentation raised the test accuracy, as in the paper",
        ),
    ),
    _raises(6, "HardSigmoid in place of ReLU raises the gap and |J|", "of HardSigmoid", "of ReLU"),
    _raises(
        7,
        "Full-batch training raises the gap and |J|",
        "after full-batch training",
        "after minibatch training",
    ),
    _claim(
        8,
        "Transitions follow the gap for labels, augmentation and activation, not for full batches",
        _more("with random labels", "with true ones", "transitions"),
        _more("without augmentation", "with it", "transitions"),
        _more("of HardSigmoid", "of ReLU", "transitions"),
        Rule(
            "1 if there are more transitions after full-batch than after minibatch training, else "
            "0, a value a pair of networks (three quarters would be agreement)",
            "<",
            0.75,
            "bootstrap",
            PAIRS,
        ),
        figure="Fig. 4",
        shown="a plot, no number",
    ),
    _claim(
        9,
        "|J| and the gap are positively rank-correlated on every data set",
        *(
            Rule(f"Spearman correlation of |J| with the gap, {TITLES[name]}", ">", 0.0)
            for name in DATASETS
        ),
        figure="Fig. 5",
        shown="plots, no number",
    ),
    _claim(
        10,
        "Transitions and the gap are not clearly correlated",
        *(
            Rule(f"|Spearman correlation| of transitions with the gap, {TITLES[name]}", "<", 0.5)
            for name in DATASETS
        ),
        figure="Fig. 5 and appendix",
        shown="plots, no number",
    ),
    _claim(
        11,
        "Misclassified points have higher |J|, and some of them a small one",
        Rule(
            "share of pairs of a misclassified and a correct test point in which the former has "
            "the higher |J|",
            ">",
            0.5,
        ),
        Rule("share of misclassified test points with |J| below the mean of all", ">", 0.01),
        figure="Fig. 6",
        shown="a plot, no number",
    ),
    _claim(
        12,
        "|J_y| is largest at a cross-entropy of ln 2",
        Rule(
            "|cross-entropy at the peak of a fit ln |J_y| = c + a ln p + b ln(1 - p) to test "
            "points with p = e^-l from 0.05 to 0.95, minus ln 2|",
            "<",
            0.25,
        ),
        figure="Fig. 6",
        shown="ln 2, from the bounds",
    ),
    _claim(
        13,
        "The best gap at the largest width is smaller than at small width",
        Rule(
            "least gap at the smallest width minus that at the largest, over all networks with "
            "true labels, CIFAR-10",
            ">",
            0.0,
        ),
        figure="Fig. 1",
        shown="a plot, no number",
    ),
)


def statistics(
    networks: pd.DataFrame, paired: pd.DataFrame, paths: pd.DataFrame, points: pd.DataFrame
) -> dict[str, list]:
    """Return, for every claim, one number a seed or pair, or one such list for each of its rules.

    NaN says that a statistic is undefined for a seed: the data set is missing, the network has not
    fitted its labels, or too few have.

    Parameters
    ----------
    networks : DataFrame
        N9, N10, N13. A row a network: dataset (one of `DATASETS`, or "mnist5k" for MNIST), seed,
        width, labels (`TRUE` or `RANDOM`), train_accuracy, gap, jacobian (mean |J|), transitions
        (mean over test points; NaN where units are smooth). All networks, fitted or not.
    paired : DataFrame
        N4 to N8. What `pairs` returns.
    paths : DataFrame
        N1 to N3. Columns seed, train_accuracy, stage (`INITIAL` or `TRAINED`), kind (`DIFFERENT`,
        `SAME`, `NOISE`), angle (degrees; the three points lie at 0, 120 and 240), norm (|J|) and
        density (transitions per length of path): means over ellipses, a row an angle.
    points : DataFrame
        N11, N12. A row a test point: seed, train_accuracy, correct, cross_entropy, norm (|J|),
        row_norm (|J_y|).
    """
    found: dict[str, list] = {}
    curves = {
        name: own.by_seed(paths, lambda rows, column=column: own.along(rows, column))
        for name, column in (("|J|", "norm"), ("density", "density"))
    }
    for claim, name in (("N1", "|J|"), ("N2", "density")):
        found[claim] = [[one[key] for one in curves[name]] for key in ("dip", "flatness")]
    found["N3"] = [[one["same"] for one in each] for each in curves.values()]

    for claim, factor in zip(("N4", "N5", "N6", "N7"), FACTORS, strict=True):
        found[claim] = [own.differences(paired, factor, what) for what in ("gap", "jacobian")]
    found["N5"].append(own.differences(paired, AUGMENTATION, "jacobian", selected=True))
    moved = [own.differences(paired, factor, "transitions") for factor in FACTORS]
    found["N8"] = [*moved[:3], [math.nan if math.isnan(d) else float(d > 0) for d in moved[3]]]

    of = {name: _of(networks, name) for name in DATASETS}
    for claim, measure in (("N9", "jacobian"), ("N10", "transitions")):
        found[claim] = [
            own.by_seed(of[name], lambda rows, measure=measure: own.rank_correlation(rows, measure))
            for name in DATASETS
        ]
    found["N10"] = [[abs(value) for value in values] for values in found["N10"]]
    both = own.by_seed(points, own.misclassified)
    found["N11"] = [list(values) for values in zip(*both, strict=True)]
    found["N12"] = [abs(value - math.log(2)) for value in own.by_seed(points, own.peak)]
    found["N13"] = own.by_seed(of[CIFAR], own.best_gap_lost)
    return {claim.id: found[claim.id] for claim in CLAIMS}


def _of(networks: pd.DataFrame, dataset: str) -> pd.DataFrame:
    return networks[networks.dataset.replace(STAND_INS) == dataset]

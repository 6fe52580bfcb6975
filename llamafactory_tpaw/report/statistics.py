# SPDX-License-Identifier: Apache-2.0
"""How sure a number is: over seeds, which train again, and over items, which ask other questions; never mixed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from ..errors import EnvironmentProblem


LEVEL, POWER = 0.95, 0.8
# Up to 16 seeds every pattern of signs is counted; beyond that as many are drawn.
SIGN_PATTERNS = 2**16


class SeedDifference(NamedTuple):
    """One method minus another over the seeds that both have, in the units of what was measured.

    Attributes:
        values: The difference at each seed.
        mean: Their mean.
        interval: 95 % bootstrap interval (BCa) of the mean; None below 3 seeds or where all differences are equal.
        p: Two-sided sign-flip test, exact up to 16 seeds; it cannot be below `least_p`, 2 / 2^n.
        least_p: See `p`.
        effect: Cohen's d_z, mean by standard deviation; None where that is 0 or unknown.
        detectable: The smallest true mean that a paired t-test at 5 % would find in 80 % of studies this large.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float
    least_p: float
    effect: float | None
    detectable: float | None


class ItemDifference(NamedTuple):
    """One checkpoint minus another over the same items: the noise of which items were drawn, not that of a seed.

    Attributes:
        n: Number of items.
        mean: Mean difference.
        stderr: Its standard error, of paired items.
        interval: Mean ± 1.96 standard errors.
        gained: Items that only the first has right; None where items are not 0 or 1.
        lost: Items that only the second has right.
        p: Exact McNemar test; None where items are not 0 or 1.
    """

    n: int
    mean: float
    stderr: float
    interval: tuple[float, float]
    gained: int | None = None
    lost: int | None = None
    p: float | None = None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % t interval of a mean over seeds, None for fewer than two."""
    import numpy as np

    if len(values) < 2:
        return None
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = float(_scipy().t.ppf((1 + LEVEL) / 2, len(values) - 1) * error)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of items."""
    found = _scipy().binomtest(correct, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def paired_by_seed(a: Sequence[float], b: Sequence[float]) -> SeedDifference:
    """Compare two methods by their values at the same seeds, in the same order; ValueError if there are none.

    Needs scipy, and statsmodels from two seeds on.
    """
    import numpy as np

    stats = _scipy()
    values = np.subtract(a, b, dtype=float)
    n = len(values)
    if n == 0:
        raise ValueError("no seed is given")
    mean, p = float(np.mean(values)), 1.0
    if n > 1:
        settings = {"permutation_type": "samples", "n_resamples": SIGN_PATTERNS, "vectorized": True, "rng": 0}
        p = float(stats.permutation_test((values,), np.mean, **settings).pvalue)
    # Equal but for rounding: no spread from which anything could be said.
    spread = float(np.std(values, ddof=1)) if n > 1 and np.ptp(values) > 1e-12 * np.max(np.abs(values)) else 0.0
    interval = effect = detectable = None
    if spread:
        effect, detectable = mean / spread, smallest_effect(n) * spread
    if spread and n > 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap((values,), np.mean, confidence_level=LEVEL, method="BCa", rng=0)
        low, high = found.confidence_interval
        interval = (float(low), float(high)) if np.isfinite([low, high]).all() else None
    return SeedDifference(tuple(values.tolist()), mean, interval, p, 2 / 2**n, effect, detectable)


def smallest_effect(n: int) -> float:
    """Return the smallest d_z that a paired t-test at 5 %, two-sided, finds in 80 % of studies with `n` >= 2 seeds."""
    power = _statsmodels("stats.power").TTestPower()
    return float(power.solve_power(nobs=n, alpha=0.05, power=POWER, alternative="two-sided"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction for their number."""
    if not p_values:
        return []
    return _statsmodels("stats.multitest").multipletests(p_values, method="holm")[1].tolist()


def verdict(difference: SeedDifference, corrected_p: float) -> str:
    """Return `gain` or `loss` where the BCa interval leaves out 0 and Holm's p is below 0.05, else `not shown`."""
    if difference.interval is None or corrected_p >= 0.05 or difference.interval[0] <= 0 <= difference.interval[1]:
        return "not shown"
    return "gain" if difference.mean > 0 else "loss"


def paired_difference(items_a: Sequence[float] | str, items_b: Sequence[float] | str) -> ItemDifference:
    """Compare two checkpoints item by item; both in the same order, numbers or a text of `0` and `1`.

    Raises:
        ValueError: If there are no items, or not as many of both.
    """
    import numpy as np

    a, b = (np.array(list(items), dtype=float) for items in (items_a, items_b))
    n = len(a)
    if n != len(b) or n == 0:
        raise ValueError(f"{n} items cannot be paired with {len(b)}")
    mean, stderr = float(np.mean(a - b)), float(np.std(a - b, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    half = _scipy().norm.ppf((1 + LEVEL) / 2) * stderr
    found = ItemDifference(n, mean, stderr, (float(mean - half), float(mean + half)))
    if not np.isin([a, b], (0, 1)).all():
        return found
    gained, lost = int(np.sum(a > b)), int(np.sum(a < b))
    p = float(_scipy().binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return found._replace(gained=gained, lost=lost, p=p)


def _scipy() -> ModuleType:
    try:
        import scipy.stats
    except ImportError as error:
        raise EnvironmentProblem("scipy is not installed: pip install 'llamafactory-tpaw[eval]'") from error
    return scipy.stats


def _statsmodels(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(f"statsmodels.{name}")
    except ImportError as error:
        raise EnvironmentProblem("statsmodels is not installed: pip install 'llamafactory-tpaw[eval]'") from error

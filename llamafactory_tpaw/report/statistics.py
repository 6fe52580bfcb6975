# SPDX-License-Identifier: Apache-2.0
"""How sure a number is: over seeds, which train again, and over items, which ask other questions; never mixed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import EnvironmentProblem


LEVEL = 0.95
# Up to 16 seeds every pattern of signs is counted; beyond that as many are drawn.
SIGN_PATTERNS = 2**16


class SeedDifference(NamedTuple):
    """One method minus another over the seeds that both have, in the units of what was measured.

    `interval` is the 95 % bootstrap interval (BCa) of the mean, None below 3 seeds or without spread. `p` is of the
    two-sided sign-flip test, exact up to 16 seeds; it cannot be below 2 / 2^n. `effect` is Cohen's d_z, mean by
    standard deviation. `detectable` is the true mean that a paired t-test at 5 % finds in 80 % of such studies.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float
    effect: float | None
    detectable: float | None


class ItemDifference(NamedTuple):
    """One checkpoint minus another over the same `n` items, with the noise of which items were drawn alone.

    `stderr` is of the mean of paired items, `interval` the mean ± 1.96 of it, and `p` of the exact McNemar test, None
    where items are not right or wrong.
    """

    n: int
    mean: float
    stderr: float
    interval: tuple[float, float]
    p: float | None = None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % t interval of a mean over seeds, None for fewer than two."""
    from scipy import stats

    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of items."""
    from scipy import stats

    found = stats.binomtest(correct, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def paired_by_seed(a: Sequence[float], b: Sequence[float]) -> SeedDifference:
    """Compare two methods by their values at the same seeds, in the same order; ValueError if there are none."""
    import numpy as np
    from scipy import stats

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
        power = _statsmodels("stats.power").TTestPower()
        smallest = power.solve_power(nobs=n, alpha=0.05, power=0.8, alternative="two-sided")
        effect, detectable = mean / spread, float(smallest) * spread
    if spread and n > 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap((values,), np.mean, confidence_level=LEVEL, method="BCa", rng=0)
        low, high = found.confidence_interval
        interval = (float(low), float(high)) if np.isfinite([low, high]).all() else None
    return SeedDifference(tuple(values.tolist()), mean, interval, p, effect, detectable)


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
    """Compare two checkpoints' items, numbers or a text of `0` and `1`; ValueError if none or not as many of both."""
    import numpy as np
    from scipy import stats

    a, b = (np.array(list(items), dtype=float) for items in (items_a, items_b))
    n = len(a)
    if n != len(b) or n == 0:
        raise ValueError(f"{n} items cannot be paired with {len(b)}")
    mean, stderr = float(np.mean(a - b)), float(np.std(a - b, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    half = stats.norm.ppf((1 + LEVEL) / 2) * stderr
    found = ItemDifference(n, mean, stderr, (float(mean - half), float(mean + half)))
    if not np.isin([a, b], (0, 1)).all():
        return found
    gained, lost = int(np.sum(a > b)), int(np.sum(a < b))
    return found._replace(p=float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0)


def _statsmodels(name: str) -> Any:
    try:
        return importlib.import_module(f"statsmodels.{name}")
    except ImportError as error:
        raise EnvironmentProblem("statsmodels is not installed: pip install 'llamafactory-tpaw[eval]'") from error

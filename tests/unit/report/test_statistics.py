# SPDX-License-Identifier: Apache-2.0
"""Statistics by hand, by enumeration, and as scipy and statsmodels say them directly."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.report import statistics


A, B = (0.52, 0.55, 0.61, 0.49, 0.58, 0.63), (0.50, 0.56, 0.55, 0.46, 0.50, 0.59)
GAIN = statistics.paired_by_seed([5, 6, 8, 5, 7, 9, 6, 8], [4, 4, 4, 4, 4, 4, 4, 4])


@pytest.mark.parametrize("b", [B, A[::-1], (0.0,) * 6])
def test_sign_flip_is_the_enumeration_of_all_signs(b: tuple[float, ...]) -> None:
    differences = np.subtract(A, b)
    means = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
    assert statistics.paired_by_seed(A, b).p == pytest.approx(expected)


def test_seeds_by_hand_and_as_the_libraries_say() -> None:
    """Differences 2, 0, 1: mean 1, standard deviation 1; |mean| >= 1 for 4 of 8 sign patterns."""
    small = statistics.paired_by_seed([3, 2, 2], [1, 2, 1])
    assert (small.mean, small.effect, small.p) == (1, 1, 0.5)
    found, differences = statistics.paired_by_seed(A, B), np.subtract(A, B)
    bca = stats.bootstrap((differences,), np.mean, method="BCa", rng=0).confidence_interval
    assert found.interval == pytest.approx((bca.low, bca.high))
    power = TTestPower().power(found.detectable / differences.std(ddof=1), 6, 0.05, alternative="two-sided")
    assert power == pytest.approx(0.8, abs=1e-4)
    assert statistics.mean_interval(A) == pytest.approx(stats.t.interval(0.95, 5, np.mean(A), stats.sem(A)))


@pytest.mark.parametrize(("a", "b", "p"), [([1], [0], 1), ([3, 3, 3], [1, 1, 1], 0.25), ([0.3] * 3, [0.1] * 3, 0.25)])
def test_without_spread_there_is_no_interval_and_no_effect(a: list[float], b: list[float], p: float) -> None:
    found = statistics.paired_by_seed(a, b)
    assert found.p == p
    assert found.interval is found.effect is found.detectable is None
    assert statistics.verdict(found, 0.001) == "not shown"


def test_verdict_needs_the_interval_and_the_corrected_p() -> None:
    assert GAIN.interval[0] > 0
    assert GAIN.p == 2 / 2**8
    assert statistics.verdict(GAIN, 0.04) == "gain"
    assert statistics.verdict(GAIN, 0.05) == "not shown"
    assert statistics.verdict(GAIN._replace(mean=-1, interval=(-2, -0.1)), 0.04) == "loss"
    assert statistics.verdict(GAIN._replace(interval=(0, 2)), 0.04) == "not shown"


def test_holm_by_hand() -> None:
    """0.01 · 3, then 0.03 · 2, then 0.04 · 1, which may not be below the one before."""
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_items_by_hand() -> None:
    """3 gained, 1 lost of 10: mean 0.2, s² = (4 - 0.4) / 9 = 0.4, error sqrt(0.04); p = 2 · (1 + 4) / 2⁴."""
    found = statistics.paired_difference("1111000000", "1000100000")
    assert (found.n, found.p) == (10, pytest.approx(0.625))
    assert (found.mean, found.stderr) == (pytest.approx(0.2), pytest.approx(0.2))
    assert found.interval == pytest.approx((0.2 - 1.959964 * 0.2, 0.2 + 1.959964 * 0.2))
    assert statistics.paired_difference("11", [1, 1]).p == 1
    scores = statistics.paired_difference([0.5, 0.75], [0.25, 0.0])
    assert (scores.mean, scores.stderr, scores.p) == (0.5, pytest.approx(0.25), None)
    assert math.isnan(statistics.paired_difference("1", "0").stderr)
    with pytest.raises(ValueError, match="2 items cannot be paired with 1"):
        statistics.paired_difference("11", "1")


def test_wilson_interval() -> None:
    """For 8 of 10: centre (0.8 + z²/20) / (1 + z²/10) = 0.7167, half width 0.2268 with z = 1.96."""
    assert statistics.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_without_the_libraries_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(
        EnvironmentProblem, match=r"statsmodels is not installed: pip install 'llamafactory-tpaw\[eval\]'"
    ):
        statistics.holm([0.1])

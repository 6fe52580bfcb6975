# SPDX-License-Identifier: Apache-2.0
"""One page on a set of runs: what each method reached, its rewards, its player weights, and the noise."""

# SPDX-License-Identifier: Apache-2.0
"""Training one iteration: from players and triplets to θ_{t+1}."""

# SPDX-License-Identifier: Apache-2.0
"""What `make demo` runs: a task and a model made from nothing, the trainings, their evaluation and a report."""

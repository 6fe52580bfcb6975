# SPDX-License-Identifier: Apache-2.0
r"""A new run from a model and an SFT set: what is asked for, what is found out, and the files that come of it.

`settings` reads what the user gave, `model`, `templates`, `dataset`, `columns`, `lengths` and `machine` find out the
rest, `project` makes the files' texts of it and `writing` writes them, whole or not at all.
"""

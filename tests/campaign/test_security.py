# SPDX-License-Identifier: Apache-2.0
"""What an untrusted dataset, checkpoint, server or reader could do: each test's first paragraph says what holds."""

# SPDX-License-Identifier: Apache-2.0
"""All that the tests of this folder import of the package: where a name moves, this file alone follows it."""

from __future__ import annotations

from llamafactory_tpaw.cli import main as command
from llamafactory_tpaw.team.cache import sequence_key
from llamafactory_tpaw.team.fingerprint import chain_fingerprints, fingerprint_checkpoint


__all__ = ["chain_fingerprints", "command", "fingerprint_checkpoint", "sequence_key"]

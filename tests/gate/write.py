# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.gate.write` writes the golden values of the code as it is: only where a change of them is meant."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tests.gate import values


if __name__ == "__main__":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    for section in (*values.SINGLE.values(), values.tiny_run):
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(section(Path(folder)), indent=1, ensure_ascii=False) + "\n"
        (values.HERE / "golden" / f"{section.__name__}.json").write_text(text, encoding="utf-8")

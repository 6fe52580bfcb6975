# SPDX-License-Identifier: Apache-2.0
"""The scripts and manifests of docs/clusters.md can be read by what they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from llamafactory_tpaw.errors import EXIT_CODES, TERMINATED


PAGE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_slurm_script_is_bash(tmp_path: Path) -> None:
    (script,) = blocks("bash")
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "job.sh"], cwd=tmp_path, check=True)
    assert f'"$code" -eq {TERMINATED}' in script


def test_the_kubernetes_manifest_holds_together() -> None:
    (text,) = blocks("yaml")
    service, job = yaml.safe_load_all(text)
    spec: dict[str, Any] = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert (job["kind"], spec["completionMode"], service["spec"]["clusterIP"]) == ("Job", "Indexed", "None")
    assert spec["completions"] == spec["parallelism"] == int(variables["NNODES"])
    assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert pod["restartPolicy"] == "Never", "what a pod failure policy needs"
    (codes,) = (rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert codes["containerName"] == container["name"]
    assert set(codes["values"]) <= EXIT_CODES.keys() - {TERMINATED}


def test_variables_are_llamafactorys() -> None:
    import llamafactory.launcher

    for variable in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE", "RDZV_ID"):
        assert variable in PAGE.read_text()
        assert variable in Path(llamafactory.launcher.__file__).read_text()

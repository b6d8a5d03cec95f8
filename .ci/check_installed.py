"""Uses the installed wheel as somebody would who has nothing of this tree."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution, entry_points
from pathlib import Path

import airflow_provider_codegateway
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

NAME = "airflow-provider-codegateway"

package = Path(airflow_provider_codegateway.__file__).resolve()
assert package.is_relative_to(Path(sys.prefix).resolve()), f"imported from {package}, not from the wheel"
version = distribution(NAME).version
assert version == airflow_provider_codegateway.__version__

operator = GenerateVideoOperator(
    task_id="render", model="google/veo-3.1-fast", prompt="x", s3_key="s3://bucket/clip.mp4"
)
assert operator.s3_key == "s3://bucket/clip.mp4"

(provider_info,) = (
    entry_point
    for entry_point in entry_points(group="apache_airflow_provider")
    if entry_point.dist is not None and entry_point.dist.name == NAME
)
assert provider_info.load()()["package-name"] == NAME

binaries = Path(sys.executable).parent
for command in (
    [binaries / "codegateway-emulator", "--help"],
    [binaries / "airflow", "providers", "get", NAME],
):
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip()
print(f"{NAME} {version} works from its wheel.")

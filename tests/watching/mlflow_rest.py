"""What an MLflow server tells over plain HTTP: its REST API and its proxy of artifacts, without MLflow's own client."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any


class MlflowRest:
    """The server at an address like http://127.0.0.1:5000."""

    def __init__(self, address: str) -> None:
        self._address = address

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """All runs of the experiment of that name."""
        found = self._get("experiments/get-by-name", experiment_name=experiment)["experiment"]
        asked = {"experiment_ids": [found["experiment_id"]], "max_results": 1000}
        return self._ask("runs/search", json.dumps(asked).encode()).get("runs", [])

    def history(self, run: dict[str, Any], metric: str) -> list[tuple[int, float]]:
        """(step, value) of every point of a metric, as they were sent."""
        points = self._get("metrics/get-history", run_id=run["info"]["run_id"], metric_key=metric)["metrics"]
        return [(int(point["step"]), float(point["value"])) for point in points]

    def artifacts(self, run: dict[str, Any], folder: str) -> dict[str, bytes]:
        """The files of a run's folder of artifacts, fetched through the server's proxy."""
        run_id, experiment = run["info"]["run_id"], run["info"]["experiment_id"]
        listed = self._get("artifacts/list", run_id=run_id, path=folder).get("files", [])
        place = f"mlflow-artifacts/artifacts/{experiment}/{run_id}/artifacts"
        paths = [one["path"] for one in listed if not one.get("is_dir")]
        return {path: self._read(f"{place}/{urllib.parse.quote(path)}") for path in paths}

    def _get(self, method: str, **parameters: str) -> dict[str, Any]:
        return self._ask(f"{method}?{urllib.parse.urlencode(parameters)}")

    def _ask(self, method: str, body: bytes | None = None) -> dict[str, Any]:
        return json.loads(self._read(f"mlflow/{method}", body))

    def _read(self, path: str, body: bytes | None = None) -> bytes:
        asked = urllib.request.Request(
            f"{self._address}/api/2.0/{path}", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.read()


def tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def metrics(run: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """(step, value) of each metric's newest point."""
    return {one["key"]: (int(one["step"]), float(one["value"])) for one in run["data"].get("metrics", [])}

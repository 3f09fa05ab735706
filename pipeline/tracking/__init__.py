"""MLflow: one run a training run, fed from what stands on disk, so that a server that is away costs nothing."""

from pipeline.tracking.server import tracking_uri
from pipeline.tracking.stage_results import log_evaluation, log_release, log_report, register_release, sync
from pipeline.tracking.tracker import Tracker

__all__ = ["Tracker", "log_evaluation", "log_release", "log_report", "register_release", "sync", "tracking_uri"]

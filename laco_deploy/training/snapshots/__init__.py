"""Snapshots of a training run: safetensors and JSON only, whole or not there."""

from laco_deploy.training.snapshots.folder import Snapshot, newest_snapshot, snapshots

__all__ = ["Snapshot", "newest_snapshot", "snapshots"]

"""Field work: when and where recordings were made."""

from NatureLM.field.clock import Clock, read_clock
from NatureLM.field.context import FieldClock, RecordingContext, asks_context, fill
from NatureLM.field.deployments import Deployment, Deployments, FileTimes, read_deployments

__all__ = [
    "Clock",
    "Deployment",
    "Deployments",
    "FieldClock",
    "FileTimes",
    "RecordingContext",
    "asks_context",
    "fill",
    "read_clock",
    "read_deployments",
]

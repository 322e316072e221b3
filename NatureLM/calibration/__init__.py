"""Calibration: a temperature that makes the confidence in labels mean what it says."""

from NatureLM.calibration.fitting import fit_temperature
from NatureLM.calibration.record import (
    FILE_NAME,
    Calibration,
    CalibrationError,
    beside_model,
    calibration_for,
    read_calibration,
    write_calibration,
)

__all__ = [
    "FILE_NAME",
    "Calibration",
    "CalibrationError",
    "beside_model",
    "calibration_for",
    "fit_temperature",
    "read_calibration",
    "write_calibration",
]

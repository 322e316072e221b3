"""From recordings and questions to answers: windows, pipeline, conversations, calibration."""

"""What the stage `evaluate` measures: scores, agreement with the teacher, calibration, and costs."""

"""Evaluation of a network: accuracy, mean average precision, calibration counts."""

"""Objectives: functions of student outputs and a TargetBatch."""

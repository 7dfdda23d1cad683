"""Sweeps: many recipes on one base in one job, and which of what they make is worth having."""

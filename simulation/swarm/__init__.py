"""Deterministic simulation testing: every seed is another network with other faults, and must heal."""

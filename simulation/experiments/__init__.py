"""Experiments: runs with their curves, results in files, sweeps, comparisons, pages and live views."""

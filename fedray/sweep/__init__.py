"""Sweeps: one configuration per trial, one line per trial in `trials.jsonl`. Start reading at `trials.py`."""

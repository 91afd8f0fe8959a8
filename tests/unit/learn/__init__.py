"""Tests of fedray.learn."""

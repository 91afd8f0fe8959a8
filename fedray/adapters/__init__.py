"""Adapters for people who come from other frameworks."""

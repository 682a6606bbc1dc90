"""Tests of what happens to a record."""

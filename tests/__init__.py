"""Tests of freshet: the same tree as the code."""

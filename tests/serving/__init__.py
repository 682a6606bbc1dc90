"""Tests of the look-ups and of the Redis schema."""

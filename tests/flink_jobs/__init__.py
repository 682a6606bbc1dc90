"""Tests of settings, state folder and command line: no JVM is started here."""

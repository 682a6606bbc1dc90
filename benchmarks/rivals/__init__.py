"""What freshet is measured against: each of these is a program of its own, with no code of ``udfs`` in it."""

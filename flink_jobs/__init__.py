"""Where and when: settings, sources, windows, the topology and the command line."""

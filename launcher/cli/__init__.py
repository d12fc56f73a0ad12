"""The command line: one file per command. Each parses, calls the library, prints; no logic of its own."""

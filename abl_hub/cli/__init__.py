"""The command line: Click, one `Output` sink, one file a command group. Thin; imports lazily."""

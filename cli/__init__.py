"""The `hrn` command: puts the parts together and talks to a person."""

"""What a command does, as functions that a notebook can call."""

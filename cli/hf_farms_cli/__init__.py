"""The `hf-farms` command. One file per command; torch is imported inside commands."""

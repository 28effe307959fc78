"""`python -m hf_farms_cli`, for launchers that start modules."""

from hf_farms_cli.app import main

main()

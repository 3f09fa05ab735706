"""`python -m pipeline` is `adaponder`, for scripts that name the Python and not a PATH."""

from pipeline.cli import main

main()

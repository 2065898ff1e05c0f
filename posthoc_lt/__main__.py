"""``python -m posthoc_lt``: the command line."""

from posthoc_lt.cli import main

main()

"""`python -m jaxlean`."""

from jaxlean.cli import main

main()

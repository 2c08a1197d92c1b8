"""`python -m oppu.cli`."""

from oppu.cli import main

main()

"""``python -m mooring.cli``: the ``mooring`` command."""

from mooring.cli.app import main

main()

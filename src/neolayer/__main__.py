"""``python -m neolayer`` is the command ``neolayer``."""

from neolayer.cli.main import main

main()

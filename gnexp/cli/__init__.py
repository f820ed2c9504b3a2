"""The command line: words, Hydra configs, launchers and sweepers, messages on the terminal.

It may import every package. Nothing here computes a number: a command joins the packages below.
"""

from gnexp.cli.app import entry, main

__all__ = ["entry", "main"]

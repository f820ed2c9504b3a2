"""`python -m gnexp`."""

from gnexp.cli import entry

if __name__ == "__main__":
    entry()

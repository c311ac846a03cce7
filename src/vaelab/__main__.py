"""`python -m vaelab`: the same as the command `vaelab`."""

from vaelab.cli import main

if __name__ == "__main__":
    main()

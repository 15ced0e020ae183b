"""`python -m api.cli`: the command `tuwen` where it is not installed as such."""

from api.cli.main import main

if __name__ == "__main__":
    main()

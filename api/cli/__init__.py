"""The command `tuwen`: its subcommands by what they are about, and how things look at the terminal."""

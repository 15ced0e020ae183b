"""The subcommands of `tuwen`, by what they are about."""

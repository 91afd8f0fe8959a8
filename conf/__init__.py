"""The configuration files that ship with fedray; see `fedray run --help`."""

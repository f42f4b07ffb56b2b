"""What every floor above stands on: user errors, commands, files, provenance and results. Standard library only."""

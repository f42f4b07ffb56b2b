"""What every floor above stands on: user errors, commands, files, provenance, results and intervals."""

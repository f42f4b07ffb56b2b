"""What every floor above stands on: user errors, commands, files, pictures, provenance, results and intervals."""

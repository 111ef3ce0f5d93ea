"""What every part of the package may use: input checks, precision, whole files, paths, scales."""

"""What every part may use: input checks, precision, whole files, paths, scales, module walks."""

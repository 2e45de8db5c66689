"""Whether what makes training fast leaves its results alone, on the user's own data and device: `vitp check`."""

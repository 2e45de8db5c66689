"""How fast training is on this machine, in numbers that can be compared: `vitp bench`."""

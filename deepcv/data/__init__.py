"""Where images come from, how they are checked, packed and fed to a network."""

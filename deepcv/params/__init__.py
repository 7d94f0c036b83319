"""params.yaml as frozen, typed sections; each error names the file, the line, the key and the closest valid key."""

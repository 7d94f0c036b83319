"""From a trained classifier to predictions for files."""

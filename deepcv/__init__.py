"""DeepCV: from a folder of images to a registered vision model."""

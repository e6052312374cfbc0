"""Records of measurements on disk, and their statistics."""

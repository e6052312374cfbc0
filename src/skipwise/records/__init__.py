"""What runs and measurements leave on disk, and the statistics over them."""

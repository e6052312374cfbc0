"""What measurements leave on disk, and the statistics over them."""

"""What is minimised, and by which schedule."""

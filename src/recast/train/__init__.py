"""What both training loops stand on: search and update."""

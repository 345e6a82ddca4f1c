"""What a run writes and says: its folder, its screen, its files, its surroundings."""

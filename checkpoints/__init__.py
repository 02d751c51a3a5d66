"""What a stage leaves on disk, and how it is trusted again."""

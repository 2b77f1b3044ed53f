"""Whether the complexity of a prompt tells which prompts need the strong model."""

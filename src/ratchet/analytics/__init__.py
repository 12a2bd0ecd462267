"""Questions asked of what is stored."""

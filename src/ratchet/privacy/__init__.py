"""Personal data: what is done with it, how it is found, and what stands in its place."""

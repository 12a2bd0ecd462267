"""One optimization, from request to result."""

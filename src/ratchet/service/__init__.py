"""The HTTP side of the service: parse, one call to ``ratchet.desk``, render. The only room that knows HTTP codes."""

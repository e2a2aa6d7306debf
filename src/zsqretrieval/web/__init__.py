"""The page and the JSON API of an album: ``zsq serve`` (extra ``web``)."""

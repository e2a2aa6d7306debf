"""Images from anywhere: decoding, walking folders and tars, loading in threads."""

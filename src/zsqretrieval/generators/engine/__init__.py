"""The scoring and decoding engine of the library's generators."""

"""Encoders: images and texts into one space; see :class:`zsqretrieval.protocols.Encoder`."""

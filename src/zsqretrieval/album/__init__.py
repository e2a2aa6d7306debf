"""An album on disk: catalog, change log, questions, image features, index snapshots."""

"""Any image-text-to-text model of transformers as a generator."""

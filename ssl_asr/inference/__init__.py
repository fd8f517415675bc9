"""Transcription with a model that is ready: batches, long recordings, resumption and output formats."""

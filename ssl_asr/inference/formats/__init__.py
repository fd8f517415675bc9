"""The formats of transcripts, a module for each kind. Every format is a view of the same words and segments."""

"""An HTTP server for transcription, compatible with OpenAI's audio API, and its page."""

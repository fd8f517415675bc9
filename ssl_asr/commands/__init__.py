"""What each command of ``ssl-asr`` does, one file a command."""

"""Write a trained model in the formats of other runtimes, and check that they transcribe alike."""

"""Small classifiers that are taught by a few labelled examples, on what the audio encoder hears."""

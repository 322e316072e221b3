"""Generated instruction text: the questions and answers that the language model learns from."""

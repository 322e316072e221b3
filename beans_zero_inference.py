"""`python beans_zero_inference.py …` is `beans …`, for scripts that call it by this name."""

from NatureLM.cli.main import beans

if __name__ == "__main__":
    beans()

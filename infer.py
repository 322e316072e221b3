"""`python infer.py …` is `naturelm infer …`, for scripts that call it by this name."""

from NatureLM.cli.main import infer_main

if __name__ == "__main__":
    infer_main()

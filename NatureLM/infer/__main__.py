"""`python -m NatureLM.infer …` is `naturelm infer …`."""

if __name__ == "__main__":
    from NatureLM.cli.main import infer_main

    infer_main()

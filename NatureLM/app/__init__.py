"""The web app: questions of recordings on a page, with the same pipeline as everything else.

`page.build` makes the page, `serve.serve` shows it, `context.AppContext` is what all tabs share.
Gradio is imported inside functions only, because it is an optional library.
"""

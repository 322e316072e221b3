"""The web app: questions of recordings on a page, with the same pipeline as everything else.

`page.serve` shows the page, `context.AppContext` is what all tabs share, `tabs` has one file a tab.
Gradio is imported inside functions only, because it is an optional library.
"""

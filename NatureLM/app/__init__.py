"""The web app: questions of recordings on a page, with the same pipeline as everything else.

`page.serve` shows the page, `context.AppContext` is what all tabs share. Gradio is an optional
library: `page`, `ui` and the modules of tabs import it, so `settings.need_gradio` comes first.
"""

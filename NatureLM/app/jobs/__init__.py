"""Long work of the web app: it goes on when the page is closed, and its link opens it again."""

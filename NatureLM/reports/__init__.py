"""Reports: answers to one page that can be read anywhere, with figures and tables beside it."""

"""One file for each tab of the page; `build(context)` puts its components into the tab."""

"""`vitp serve`: models behind one HTTP server, with a page to look at them. It needs the extra `serve`."""

"""The source `http://` and `https://`: a folder with `holdfast.json`, or an index page that a server generates."""

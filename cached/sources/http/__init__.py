"""The source `http://` and `https://`: a folder with `holdfast.json`, or an index page that a server generates.

Law: an index names entries strictly below itself; a page that is no index is an error, never an empty folder.
"""

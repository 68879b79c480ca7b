"""The page at `/` of the daemon's port: what this node holds, fetches and lacks, for a person with a browser.

Law: reads the other parts and changes nothing; runs on the event loop and touches no file of the root. Imported at the
first request for the page: a daemon whose page is never opened loads none of it. What tenants and publishers can name
becomes HTML in `markup.py` alone, which escapes it. Nothing comes from elsewhere: the style and the script are in the
page, allowed by their hashes.
"""

"""The way to a registry: its servers, the login for it, and the tokens that it asks for.

Law: a credential goes to the server that it is for, and is in no message.
"""

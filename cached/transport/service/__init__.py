"""The small requests of a source to the services that it asks: JSON, forms, tokens.

Law: every answer is small, bounded and checked; a credential goes to the origins that it is for, and nowhere else.
"""

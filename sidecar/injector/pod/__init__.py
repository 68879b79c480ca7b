"""What an annotated pod becomes: its patch, from the pod's own text, the catalog and the settings.

Law: pure: values in, JSON values out; opens no file and asks no server.
"""

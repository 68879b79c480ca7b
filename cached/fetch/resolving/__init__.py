"""From a want to the files and addresses of a version.

Law: asks sources in threads; receives no byte of a file.
"""

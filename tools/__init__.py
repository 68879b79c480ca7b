"""Programs that make committed files from the code: reference pages, alerts, dashboards.

Law: a program here writes files of this repository and nothing else; each file has a test that it is what its program
makes now. Not part of any package.
"""

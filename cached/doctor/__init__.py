"""`holdfast doctor`: look at all that a node needs, and say what to do about what is wrong.

Law: looks and changes nothing: of a source one listing, no file's bytes; of the cluster reads and questions about
rights; the file system is tried with empty files that are gone at once. Each check is independent, bounded in time, and
a failure of the check itself is a finding.
"""

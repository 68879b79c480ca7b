"""What commands share: their options, the control socket's client, the public tree, bars and styles.

Law: standard library and contract; rich at its first use. Knows no command.
"""

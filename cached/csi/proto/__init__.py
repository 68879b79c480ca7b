"""The messages of CSI and of the kubelet's plugin registration, as `.proto` files and the modules made of them.

Law: the modules are generated (`make proto`) and never edited; a test compares them with their `.proto` files.
"""
